"""The stage prune-depth: right blocks, exact outputs, honest accounting, clear refusals."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from compress.prune_depth import PruneDepthConfig, run
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.evaluate import histories
from recommender.models.config import LlmConfig, PopularityConfig
from recommender.models.interface import History
from recommender.stage import Bound, Shape

from .conftest import MakeContext, bound, saved, train_tiny, write_log
from .grown import saved_as, with_identities

IMPORTANCES = ("first", "block-influence", "angular", "greedy", "uniform")


def config_for(**values: Any) -> PruneDepthConfig:
    return PruneDepthConfig(**({"stage": "prune-depth", "of": "source", "as": "pruned", "keep": 2} | values))


def prune(
    source: Bound, make_context: MakeContext, name: str = "pruned", **values: Any
) -> tuple[Bound, Mapping[str, Any]]:
    context = make_context(name)
    metrics = run(config_for(**values), {"source": source}, context).metrics
    return bound(name, context.folder), metrics


def user_vectors(checkpoint: Bound, prepared: Prepared) -> torch.Tensor:
    users = np.arange(20)
    arrays = histories(prepared, users, prepared.lengths()[users], 10)
    with torch.inference_mode():
        return load_checkpoint(checkpoint.path).user_vector(History(torch.from_numpy(arrays.items)))


def numbers_in(folder: Path) -> int:
    return sum(value.size for path in folder.rglob("*.safetensors") for value in load_file(path).values())


@pytest.mark.parametrize("importance", ["block-influence", "angular", "greedy"])
@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_identity_blocks_are_removed_and_the_model_stays_the_same(
    source: str,
    importance: str,
    request: pytest.FixtureRequest,
    prepared: Prepared,
    make_context: MakeContext,
) -> None:
    trained: Bound = request.getfixturevalue(source)
    places = (1, 2) if importance == "angular" else (0, 3)
    grown = saved_as(f"grown-{importance}", with_identities(trained, places), trained, prepared)
    layers = read_info(grown.path).blocks["user"]
    pruned, metrics = prune(grown, make_context, keep=layers - 2, importance=importance)
    assert metrics["kept"] == [block for block in range(layers) if block not in places]
    assert torch.allclose(user_vectors(pruned, prepared), user_vectors(grown, prepared), atol=1e-6)
    assert torch.allclose(user_vectors(pruned, prepared), user_vectors(trained, prepared), atol=1e-6)


def test_removing_a_block_that_works_changes_the_model(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    pruned, _ = prune(teacher, make_context, keep=3)
    assert not torch.allclose(user_vectors(pruned, prepared), user_vectors(teacher, prepared), atol=1e-2)


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_every_importance_gives_a_checkpoint_that_says_what_it_is(
    source: str, importance: str, request: pytest.FixtureRequest, make_context: MakeContext
) -> None:
    pruned, metrics = prune(request.getfixturevalue(source), make_context, importance=importance)
    info = read_info(pruned.path)
    assert info.blocks == {"user": 2} and info.model_config.layers == 2  # type: ignore[union-attr]
    assert info.about["kept"] == metrics["kept"] == sorted(set(metrics["kept"]))
    assert len(load_checkpoint(pruned.path).bodies()["user"].blocks) == 2


def test_scores_stand_in_the_metrics(teacher: Bound, make_context: MakeContext) -> None:
    assert len(prune(teacher, make_context, "a", importance="block-influence")[1]["block_influence"]) == 4
    assert len(prune(teacher, make_context, "b", importance="angular")[1]["angular_distances"]) == 3
    greedy = prune(teacher, make_context, "c", importance="greedy")[1]
    assert [set(step) for step in greedy["removals"]] == [{"block", "validation_loss"}] * 2
    assert greedy["validation_loss_before"] < greedy["removals"][-1]["validation_loss"]


@pytest.mark.parametrize("init", ["teacher", "base", "fresh"])
@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_parameters_before_minus_after_are_those_of_the_removed_blocks(
    source: str, init: str, request: pytest.FixtureRequest, make_context: MakeContext
) -> None:
    trained: Bound = request.getfixturevalue(source)
    pruned, metrics = prune(trained, make_context, keep=(0, 2), init=init)
    gone = metrics["parameters_before"] - metrics["parameters_after"]
    assert gone == metrics["removed_parameters"] > 0
    assert gone == numbers_in(trained.path) - numbers_in(pruned.path)
    assert gone == metrics["body_parameters_before"] - metrics["body_parameters_after"]
    assert metrics["parameters_after"] == saved(pruned.path)["parameters"]


def test_listed_blocks_stay_in_the_order_of_the_model(teacher: Bound, make_context: MakeContext) -> None:
    pruned, metrics = prune(teacher, make_context, keep=(3, 0), importance="greedy")
    assert metrics["kept"] == [0, 3]
    before, after = (load_checkpoint(side.path).bodies()["user"].blocks for side in (teacher, pruned))
    for old, new in zip((before[0], before[3]), after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_keeping_everything_changes_nothing(
    importance: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    pruned, metrics = prune(teacher, make_context, keep=4, importance=importance)
    assert metrics["kept"] == [0, 1, 2, 3] and metrics["removed_parameters"] == 0
    assert torch.equal(user_vectors(pruned, prepared), user_vectors(teacher, prepared))


WRONG = [
    (5, "cannot keep 5 of the 4 blocks of 'source'"),
    ((0, 4), "no block 4: 'source' has 4 blocks, 0 to 3"),
    ((1, 1), "block 1 is listed more than once"),
    ((), "an empty list keeps no block"),
]


@pytest.mark.parametrize(("keep", "message"), WRONG)
def test_impossible_selections_are_refused_before_and_while_running(
    keep: Any, message: str, teacher: Bound, make_context: MakeContext
) -> None:
    assert config_for(keep=keep).problems({"source": Shape("checkpoint", layers=4)}) == [("keep", message)]
    context = make_context("refused")
    with pytest.raises(InputError, match=message):
        run(config_for(keep=keep), {"source": teacher}, context)
    assert not (context.folder / "checkpoint").exists()


@pytest.mark.parametrize("keep", [0, -1, (-1,), "two"])
def test_selections_that_no_model_could_give_are_no_config(keep: Any) -> None:
    with pytest.raises(ValueError, match="keep"):
        config_for(keep=keep)


def test_unknown_sources_are_left_to_the_recipe_check_and_repeats_are_not() -> None:
    assert config_for(keep=9).problems({}) == []
    assert config_for(keep=9).problems({"source": Shape("checkpoint")}) == []
    assert config_for(keep=(1, 1)).problems({}) == [("keep", "block 1 is listed more than once")]


def test_shape_has_the_kept_blocks() -> None:
    known = {"source": Shape("checkpoint", layers=8, model=LlmConfig(layers=8))}
    assert config_for(keep=3).shape(known) == Shape("checkpoint", layers=3, model=LlmConfig(layers=3))
    assert config_for(keep=(0, 5)).shape({}).layers == 2


def test_popularity_has_nothing_to_prune(
    tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    known = {"source": Shape("checkpoint", model=PopularityConfig())}
    assert config_for().problems(known) == [("of", "'source' has no blocks to remove")]
    popularity, _ = train_tiny(tmp_path / "popularity", prepared, {"kind": "popularity"})
    with pytest.raises(InputError, match="no blocks to remove"):
        prune(popularity, make_context)


def test_checkpoint_of_another_data_set_is_refused(
    tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    other = write_log(tmp_path / "other", prefix="x")
    with pytest.raises(InputError, match="another data set"):
        run(config_for(), {"source": teacher}, make_context("refused", prepared=other))


def test_configs_are_read_without_torch() -> None:
    code = (
        "import sys, compress.prune_depth, compress.distill.stage\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
