"""Yesterday's checkpoint over today's catalogue: known items score as before, whatever their rows are now."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recommender.checkpoint import load_checkpoint
from recommender.data.config import DataConfig
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.evaluate import quality
from recommender.models.config import PopularityConfig
from recommender.models.interface import History
from recommender.ranking import TorchScorer
from recommender.stage import Bound, Context, Outputs, Shape
from recommender.training.stage import TrainConfig
from recommender.training.stage import run as train
from recommender.training.validation import validation_quality
from recommender.warm_start import AdaptConfig, run
from tests.recommender.fixtures import context_for

LLM: dict[str, Any] = {"kind": "llm", "layers": 2, "hidden": 16, "item_dim": 8, "dropout": 0.0}
SASREC: dict[str, Any] = {"kind": "sasrec", "layers": 1, "hidden": 16, "dropout": 0.0}
YESTERDAY = [f"p{number}" for number in range(24)]
TODAY = [*YESTERDAY[2:], *(f"new{number}" for number in range(5))]  # two have vanished


def ring_log(folder: Path, items: Sequence[str], *, item_seed: int = 0, users: int = 70) -> Prepared:
    """Users who walk around a ring of items, prepared from a CSV file as a user's log would be."""
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "item_id": items[(start + step) % len(items)], "position": step}
        for user in range(users)
        for start in [int(rng.integers(len(items)))]
        for step in range(int(rng.integers(5, 9)))
    ]
    folder.mkdir(parents=True)
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    config = DataConfig(interactions=folder / "log.csv", item_seed=item_seed, max_length=10)
    return prepare(config, folder / "cache")


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return ring_log(tmp_path_factory.mktemp("data") / "yesterday", YESTERDAY)


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return ring_log(tmp_path_factory.mktemp("data") / "today", TODAY, item_seed=3, users=80)


def trained(
    model: dict[str, Any] | None,
    context: Context,
    inputs: dict[str, Bound] | None = None,
    **values: Any,
) -> tuple[Bound, Outputs]:
    entries = {"stage": "train", "as": "m", "epochs": 6, "batch_size": 16, "learning_rate": 1e-2}
    config = TrainConfig.model_validate({**entries, "model": model, **values})
    outputs = train(config, inputs or {}, context)
    return bound("m", context), outputs


def bound(name: str, context: Context) -> Bound:
    return Bound(name, "checkpoint", context.folder / "checkpoint", context.folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, yesterday: Prepared) -> dict[str, Bound]:
    """Trained on yesterday's log: a SASRec, an llm with trained items, and one with the SASRec's, frozen."""
    home = tmp_path_factory.mktemp("runs")
    sasrec, _ = trained(SASREC, context_for(yesterday, home / "sasrec"))
    llm, _ = trained(LLM, context_for(yesterday, home / "llm"))
    frozen = {**LLM, "item_dim": 16, "item_vectors": "frozen", "items_from": "sasrec"}
    third, _ = trained(frozen, context_for(yesterday, home / "frozen"), {"sasrec": sasrec})
    return {"sasrec": sasrec, "llm": llm, "frozen": third}


def adapted(
    source: Bound, context: Context, *, also: dict[str, Bound] | None = None, **values: Any
) -> tuple[Bound, Outputs]:
    config = AdaptConfig.model_validate({"stage": "adapt", "of": "old", "as": "start", **values})
    return bound("start", context), run(config, {"old": source, **(also or {})}, context)


def scores(source: Bound, history: Sequence[str]) -> dict[str, float]:
    """Item id -> score after a history of item ids."""
    catalogue = pl.read_parquet(source.path / "items.parquet")
    rows = dict(zip(catalogue["item_id"], catalogue["row"], strict=True))
    model = load_checkpoint(source.path)
    with torch.inference_mode():
        vector = model.user_vector(History(torch.tensor([[rows[item] for item in history]])))
        every = (vector @ model.item_table().T)[0]
    return {item: float(every[row]) for item, row in rows.items()}


HISTORIES = (["p5", "p6", "p7"], ["p20"], ["p23", "p4", "p9", "p2", "p3"])


@pytest.mark.parametrize("kind", ["sasrec", "llm", "frozen"])
def test_the_same_items_in_other_rows_score_the_same(
    kind: str, sources: dict[str, Bound], yesterday: Prepared, tmp_path: Path
) -> None:
    permuted = ring_log(tmp_path / "data", YESTERDAY, item_seed=9)
    assert permuted.catalogue_digest != yesterday.catalogue_digest
    start, outputs = adapted(sources[kind], context_for(permuted, tmp_path))
    assert {k: v for k, v in outputs.metrics.items() if k.startswith("items")} == {
        "items_kept": 24, "items_new": 0, "items_vanished": 0
    }  # fmt: skip
    for history in HISTORIES:
        assert scores(start, history) == pytest.approx(scores(sources[kind], history), abs=1e-6)


@pytest.mark.parametrize("new_items", ["mean", "fresh"])
@pytest.mark.parametrize("kind", ["sasrec", "llm", "frozen"])
def test_known_items_keep_their_scores_in_a_grown_catalogue(
    kind: str, new_items: str, sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    start, outputs = adapted(sources[kind], context_for(today, tmp_path), new_items=new_items)
    counts = [outputs.metrics[f"items_{what}"] for what in ("kept", "new", "vanished")]
    assert counts == [22, 5, 2] and today.n_items == 27
    for history in HISTORIES:
        before, after = scores(sources[kind], history), scores(start, history)
        assert set(after) == set(TODAY)
        known = {item: after[item] for item in YESTERDAY[2:]}
        assert known == pytest.approx({item: before[item] for item in known}, abs=1e-6)


def test_new_items_start_at_the_mean_or_spread_around_it(
    sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    tables = {}
    for name, values, seed in (("mean", {}, 1), ("fresh", {"new_items": "fresh"}, 1),
                               ("other", {"new_items": "fresh"}, 2)):  # fmt: skip
        start, _ = adapted(sources["llm"], context_for(today, tmp_path / name, seed=seed), **values)
        tables[name] = load_checkpoint(start.path, prepared=today).item_table().detach()
    new = torch.tensor([today.rows[item] for item in TODAY[-5:]])
    old = torch.tensor([today.rows[item] for item in TODAY[:-5]])
    torch.testing.assert_close(tables["mean"][new], tables["mean"][old].mean(dim=0).expand(5, -1))
    assert tables["fresh"][new].std(dim=0).min() > 0
    assert not torch.equal(tables["fresh"][new], tables["other"][new])
    assert torch.equal(tables["fresh"][old], tables["mean"][old])
    assert not tables["mean"][0].any()


def test_a_frozen_table_takes_new_items_from_a_checkpoint_of_today(
    sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    sasrec, _ = adapted(sources["sasrec"], context_for(today, tmp_path / "sasrec"), new_items="fresh")
    moved, _ = trained(
        None, context_for(today, tmp_path / "moved"), {"start": sasrec}, start_from="start", epochs=2
    )
    start, _ = adapted(
        sources["frozen"], context_for(today, tmp_path / "llm"), items_from="moved", also={"moved": moved}
    )
    table, given = (load_checkpoint(each.path).item_table() for each in (start, moved))
    new = torch.tensor([today.rows[item] for item in TODAY[-5:]])
    assert torch.equal(table[new], given[new]) and not torch.equal(table, given)
    one, before = (scores(each, HISTORIES[0])["p9"] for each in (start, sources["frozen"]))
    assert one == pytest.approx(before, abs=1e-6)
    assert not load_checkpoint(start.path).item_table().requires_grad


def test_item_vectors_of_another_width_are_refused(
    sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    narrow, _ = adapted(sources["llm"], context_for(today, tmp_path / "narrow"))
    with pytest.raises(InputError, match="width 8, not 16"):
        adapted(sources["frozen"], context_for(today, tmp_path), items_from="n", also={"n": narrow})


@pytest.mark.parametrize("kind", ["sasrec", "llm"])
def test_training_goes_on_lower_than_a_fresh_one_and_never_below_its_start(
    kind: str, sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    start, adaption = adapted(sources[kind], context_for(today, tmp_path / "start"))
    context = context_for(today, tmp_path / "on")
    _, on = trained(None, context, {"start": start}, start_from="start", epochs=2)
    _, fresh = trained(SASREC if kind == "sasrec" else LLM, context_for(today, tmp_path / "fresh"), epochs=2)
    assert on.metrics["first_step"]["loss"] < fresh.metrics["first_step"]["loss"] - 0.5
    assert on.metrics["history"][0]["valid ndcg@10"] == adaption.metrics["ndcg@10"] > 0.2
    assert on.metrics["best_ndcg"] >= adaption.metrics["ndcg@10"]
    saved = load_checkpoint(context.folder / "checkpoint", prepared=today)
    assert validation_quality(saved, context)["ndcg@10"] == pytest.approx(on.metrics["best_ndcg"])


def test_a_training_that_only_harms_leaves_the_start_as_it_was(
    sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    start, adaption = adapted(sources["sasrec"], context_for(today, tmp_path / "start"))
    context = replace(context_for(today, tmp_path / "on"), seed=4)
    harmed, on = trained(
        None, context, {"start": start}, start_from="start", epochs=3, learning_rate=10.0, patience=2
    )
    assert on.metrics["best_epoch"] == 0 and on.metrics["epochs"] == 2
    assert on.metrics["best_ndcg"] == adaption.metrics["ndcg@10"]
    assert scores(harmed, HISTORIES[0]) == scores(start, HISTORIES[0])


def test_going_on_without_adapting_is_refused(
    sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="belongs to another data set"):
        trained(None, context_for(today, tmp_path), {"old": sources["llm"]}, start_from="old")


def test_a_catalogue_without_a_known_item_is_refused(sources: dict[str, Bound], tmp_path: Path) -> None:
    strangers = ring_log(tmp_path / "data", [f"s{number}" for number in range(12)])
    with pytest.raises(InputError, match="none of the 24 ids"):
        adapted(sources["llm"], context_for(strangers, tmp_path))


def _gone(file: Path) -> None:
    file.unlink()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def _fewer(file: Path) -> None:
    pl.read_parquet(file)[1:].write_parquet(file)


def _renumbered(file: Path) -> None:
    pl.read_parquet(file).with_columns(pl.col("row") + 1).write_parquet(file)


@pytest.mark.parametrize("harm", [_gone, _cut, _fewer, _renumbered])
def test_a_checkpoint_without_its_whole_catalogue_is_refused(
    harm: Any, sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    folder = tmp_path / "old/checkpoint"
    shutil.copytree(sources["sasrec"].path, folder)
    harm(folder / "items.parquet")
    broken = Bound("old", "checkpoint", folder, folder.parent)
    with pytest.raises(InputError, match=r"items\.parquet"):
        adapted(broken, context_for(today, tmp_path / "new"))


def test_a_longer_window_than_the_data_is_not_validated_on_but_told(
    sources: dict[str, Bound], today: Prepared, tmp_path: Path
) -> None:
    notes: list[Any] = []
    context = replace(
        context_for(today, tmp_path, max_length=1), progress=lambda _, told: notes.append(told.get("text"))
    )
    start, outputs = adapted(sources["sasrec"], context)
    assert any("could read 10 items, but is given 1" in str(text) for text in notes)
    benched = quality(
        TorchScorer(load_checkpoint(start.path)),
        today,
        context.split,
        "valid",
        context.evaluation,
        max_length=1,
    )
    assert outputs.metrics["ndcg@10"] == pytest.approx(benched["ndcg@10"])


def test_popularity_is_refused_by_the_recipe_and_by_the_stages(today: Prepared, tmp_path: Path) -> None:
    known = {"pop": Shape("checkpoint", model=PopularityConfig())}
    adapt = AdaptConfig.model_validate({"stage": "adapt", "of": "pop", "as": "a", "items_from": "pop"})
    assert [place for place, wrong in adapt.problems(known) if "popularity" in wrong] == ["of", "items_from"]
    on = TrainConfig.model_validate({"stage": "train", "as": "a", "start_from": "pop"})
    assert [place for place, wrong in on.problems(known) if "popularity" in wrong] == ["start_from"]
    pop, _ = trained({"kind": "popularity"}, context_for(today, tmp_path / "pop"))
    with pytest.raises(InputError, match="popularity"):
        adapted(pop, context_for(today, tmp_path / "a"))
    with pytest.raises(InputError, match="popularity"):
        trained(None, context_for(today, tmp_path / "b"), {"pop": pop}, start_from="pop")


@pytest.mark.parametrize("values", [{}, {"model": SASREC, "start_from": "x"}])
def test_a_training_has_one_start(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either `model`"):
        TrainConfig.model_validate({"stage": "train", "as": "a", **values})
