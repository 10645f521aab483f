"""The stage depth-profile: right measures, honest quality, nothing lost in a kill, clear refusals."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from compress import depth_measures
from compress.depth_pages import suggestion
from compress.depth_profile import DepthProfileConfig, doubling, run
from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune
from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.files import read_json
from recommender.models.config import LlmConfig, LoraSettings
from recommender.profile import Depth, DepthProfile
from recommender.stage import Bound, Context
from recommender.training.validation import validation_quality

from .conftest import MakeContext, bound, train_tiny, write_log
from .grown import saved_as, with_identities

TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 5, "patience": None}


def config_for(**values: Any) -> DepthProfileConfig:
    entries = {"stage": "depth-profile", "of": "source", "as": "profile"} | TRAINING
    return DepthProfileConfig.model_validate(entries | values)


def profile_of(source: Bound, context: Context, **values: Any) -> DepthProfile:
    run(config_for(**values), {"source": source}, context)
    return DepthProfile.model_validate(read_json(context.folder / "profile" / "profile.json"))


def depths_by(profile: DepthProfile, order: str) -> dict[int, Depth]:
    return {each.blocks: each for each in profile.depths if each.order == order and not each.retrained}


def own_quality(checkpoint: Bound, context: Context) -> Mapping[str, float]:
    return validation_quality(load_checkpoint(checkpoint.path), context)


@pytest.fixture(scope="module")
def profile(teacher: Bound, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> DepthProfile:
    from .conftest import context_in

    return profile_of(teacher, context_in(tmp_path_factory.mktemp("profile"), prepared), keep=[1, 3])


def test_every_block_every_cut_and_every_removal_is_there(profile: DepthProfile) -> None:
    assert (profile.blocks, profile.users, profile.validation_users) == (4, 150, 150)
    assert len(profile.block_influence) == 4 and all(0 <= each <= 2 for each in profile.block_influence)
    assert [(cut.length, cut.first) for cut in profile.cuts] == [
        (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1),
    ]  # fmt: skip
    assert len({step.block for step in profile.greedy}) == 3
    for order, depths in {"first": [1, 2, 3, 4], "greedy": [1, 3, 4], "block-influence": [1, 3, 4]}.items():
        assert list(depths_by(profile, order)) == depths
    assert {tuple(each.quality) for each in profile.depths} == {("hr@10", "ndcg@10", "mrr")}


def test_quality_of_all_blocks_is_that_of_the_model(
    profile: DepthProfile, teacher: Bound, make_context: MakeContext
) -> None:
    whole = own_quality(teacher, make_context("own"))
    assert whole["ndcg@10"] > 0.3
    for order in depth_measures.ORDERS:
        assert depths_by(profile, order)[4].quality == pytest.approx(whole)
    assert depths_by(profile, "first")[1].quality["ndcg@10"] < whole["ndcg@10"]


@pytest.mark.parametrize("order", depth_measures.ORDERS)
@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_a_depth_is_the_checkpoint_that_prune_depth_makes(
    source: str, order: str, request: pytest.FixtureRequest, make_context: MakeContext
) -> None:
    trained: Bound = request.getfixturevalue(source)
    found = depths_by(profile_of(trained, make_context("profile"), keep=[2]), order)[2]
    context = make_context("pruned")
    config = PruneDepthConfig.model_validate({"of": "source", "as": "p", "keep": 2, "importance": order})
    metrics = prune(config, {"source": trained}, context).metrics
    assert found.kept == metrics["kept"]
    assert found.body_parameters == metrics["body_parameters_after"]
    assert found.quality == pytest.approx(own_quality(bound("p", context.folder), context))


@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_identity_blocks_come_first_and_go_for_nothing(
    source: str, request: pytest.FixtureRequest, prepared: Prepared, make_context: MakeContext
) -> None:
    trained: Bound = request.getfixturevalue(source)
    grown = saved_as("grown-profile", with_identities(trained, (1, 3)), trained, prepared)
    layers = read_info(grown.path).blocks["user"]
    found = profile_of(grown, make_context("grown"), keep=[layers - 2])
    ranked = sorted(range(layers), key=lambda block: found.block_influence[block])
    assert set(ranked[:2]) == {1, 3}
    assert [found.block_influence[block] for block in ranked[:2]] == pytest.approx([0, 0], abs=1e-6)
    assert [step.block for step in found.greedy[:2]] == [3, 1]
    assert found.greedy[1].validation_loss == pytest.approx(found.validation_loss, abs=1e-5)
    single = {cut.first: cut.distance for cut in found.cuts if cut.length == 1}
    assert [single[1], single[3]] == pytest.approx([0, 0], abs=1e-6)
    for order in ("greedy", "block-influence"):
        cut, whole = (depths_by(found, order)[blocks] for blocks in (layers - 2, layers))
        assert 1 not in cut.kept and 3 not in cut.kept
        assert cut.quality == pytest.approx(whole.quality)


def test_the_test_part_is_not_looked_at(
    profile: DepthProfile, teacher: Bound, prepared: Prepared, tmp_path: Path, make_context: MakeContext
) -> None:
    write_log(tmp_path / "other")
    items = np.load(tmp_path / "other" / "items.npy")
    ends = np.asarray(prepared.offsets)[1:] - 1
    items[ends] = items[ends] % 40 + 1
    np.save(tmp_path / "other" / "items.npy", items)
    other = Prepared(tmp_path / "other")
    assert not np.array_equal(other.items, prepared.items)
    assert profile_of(teacher, make_context("other", prepared=other), keep=[1, 3]) == profile


def test_a_body_of_one_block_has_nothing_to_remove(
    tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    model = {"kind": "sasrec", "layers": 1, "hidden": 16, "dropout": 0.0}
    single, _ = train_tiny(tmp_path / "single", prepared, model, epochs=1)
    found = profile_of(single, make_context("one"))
    assert found.cuts == [] and found.greedy == [] and {each.blocks for each in found.depths} == {1}


def test_depths_double_unless_they_are_named() -> None:
    assert [doubling(layers) for layers in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_validation_can_be_sampled(teacher: Bound, make_context: MakeContext) -> None:
    found = profile_of(teacher, make_context("sampled"), keep=[1], validation_users=30, calibration_users=20)
    assert (found.users, found.validation_users) == (20, 30)


@pytest.mark.parametrize("init", ["teacher", "base", "fresh"])
def test_each_depth_is_trained_again_from_what_init_says(
    init: str, teacher: Bound, make_context: MakeContext
) -> None:
    context = make_context("trained")
    outputs = run(config_for(keep=[2, 1], retrain=True, init=init), {"source": teacher}, context)
    found = DepthProfile.model_validate(read_json(context.folder / "profile" / "profile.json"))
    trained = [each for each in found.depths if each.retrained]
    assert [(each.blocks, each.kept, each.init) for each in trained] == [(1, [0], init), (2, [0, 1], init)]
    for each in trained:
        cut = depths_by(found, "first")[each.blocks]
        assert each.body_parameters == cut.body_parameters and (each.seconds_per_epoch or 0) > 0
        history = outputs.metrics["training"][str(each.blocks)]["history"]
        best = max(history, key=lambda entry: entry["valid ndcg@10"])
        assert each.quality["ndcg@10"] == pytest.approx(best["valid ndcg@10"])
        assert len(history) == 2 and history[1]["loss"] < history[0]["loss"]
        if init == "teacher":
            assert each.quality["ndcg@10"] > cut.quality["ndcg@10"]
    assert not (context.folder / "checkpoint").exists()


def test_a_model_with_adapters_is_trained_through_them(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    context, info = make_context("lora"), read_info(teacher.path)
    assert isinstance(info.model_config, LlmConfig)
    config = info.model_config.model_copy(update={"lora": LoraSettings(r=2, targets=("up_proj",))})
    model = load_checkpoint(teacher.path)
    save_checkpoint(model, context.folder / "checkpoint", prepared=prepared, model_config=config)
    source, options = bound("source", context.folder), config_for(keep=[2], retrain=True, epochs=1)
    losses = []
    for noise, place in enumerate((context, make_context("again"))):  # adapters come from the context's seed
        torch.manual_seed(noise)
        training = run(options, {"source": source}, place).metrics["training"]
        losses.append(training["2"]["history"][0]["loss"])
    assert losses[0] == losses[1]
    found = DepthProfile.model_validate(read_json(context.folder / "profile" / "profile.json"))
    trained = found.depths[-1]
    assert trained.retrained and trained.body_parameters == depths_by(found, "first")[2].body_parameters


class Killed(Exception):
    """Stands for a SIGKILL."""


def killed_at(blocks: int, step: int) -> Callable[[str, Mapping[str, Any]], None]:
    """A progress callback that ends the run at a step of one depth's training."""
    training = False

    def progress(event: str, values: Mapping[str, Any]) -> None:
        nonlocal training
        if "text" in values and event == "note":
            training = values["text"].startswith(f"training {blocks} of")
        if training and event == "step" and values["step"] == step:
            raise Killed

    return progress


def without_times(profile: DepthProfile) -> dict[str, Any]:
    document = profile.model_dump()
    for each in document["depths"]:
        del each["seconds_per_epoch"]
    return document


def test_a_kill_inside_a_training_loses_no_finished_depth_and_less_than_an_epoch(
    teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"keep": [1, 2, 3], "retrain": True}
    calm = profile_of(teacher, make_context("calm"), **wanted)
    context = make_context("killed")
    with pytest.raises(Killed):
        run(config_for(**wanted), {"source": teacher}, replace(context, progress=killed_at(2, step=8)))
    assert sorted(path.name for path in context.scratch.iterdir()) == [
        "depth-1.json", "depth-2", "measured.json",
    ]  # fmt: skip
    assert not (context.folder / "profile").exists()

    told: list[tuple[str, Mapping[str, Any]]] = []
    monkeypatch.setattr(depth_measures, "measure", None)  # it would be called in vain
    resumed = profile_of(
        teacher, replace(context, progress=lambda event, values: told.append((event, dict(values)))), **wanted
    )
    notes = [values["text"] for event, values in told if event == "note" and "text" in values]
    assert "1 of 4 blocks (0): trained before the interruption" in notes
    assert "resumed at step 5" in notes  # of 5 steps an epoch; the kill came in the second
    assert without_times(resumed) == without_times(calm)


def test_the_plan_is_a_stage_that_runs_and_gives_the_depth_it_names(
    teacher: Bound, make_context: MakeContext
) -> None:
    profiled, context = make_context("profile"), make_context("pruned")
    chosen = suggestion(profile_of(teacher, profiled, keep=[1, 2, 3]))
    (stage,) = yaml.safe_load((profiled.folder / "profile" / "plan.yaml").read_text())
    assert isinstance(stage["keep"], list)
    page = (profiled.folder / "profile" / "profile.md").read_text()
    assert (
        page.count("| 4 | 0-3 | ")
        == page.count(f"| 4 | 0-3 | {', '.join(depth_measures.ORDERS)} | no |")
        == 1
    )
    config = PruneDepthConfig.model_validate({**stage, "of": "source"})
    assert prune(config, {"source": teacher}, context).metrics["kept"] == chosen.kept
    assert own_quality(bound("pruned", context.folder), context) == pytest.approx(chosen.quality)


def test_only_some_blocks_run_and_their_numbers_count_from_the_kept_ones(teacher: Bound) -> None:
    from recommender.models.interface import History

    model, history = load_checkpoint(teacher.path), History(torch.tensor([[0, 3, 4, 5]]))
    view = depth_measures.OnlyBlocks(model, [0, 2, 3])
    with torch.inference_mode():
        inner = view.hidden(history, blocks=[1, 2]).final
        assert torch.equal(inner, model.hidden(history, blocks=[2, 3]).final)
        assert len(view.hidden(history).blocks) == 3
