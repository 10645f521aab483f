"""A checkpoint whose noted zeros something has filled: every stage that takes it refuses it, and says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.depth_profile import DepthProfileConfig
from compress.depth_profile import run as profile
from compress.distill.stage import DistillConfig
from compress.distill.stage import run as distill
from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune_depth
from compress.quantize import QuantizeConfig
from compress.quantize import run as quantize
from compress.sparsify import run as sparsify_stage
from compress.width import PruneWidthConfig
from compress.width import run as prune_width
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import folder_digest, read_json, write_json
from recommender.models.config import LlmConfig
from recommender.models.linears import body_linears
from recommender.models.zeros import check_zeros
from recommender.sparsity import noted
from recommender.stage import Bound, Context, StageConfig
from recommender.training.stage import TrainConfig
from recommender.training.stage import run as train
from recommender.warm_start import AdaptConfig
from recommender.warm_start import run as adapt

from .conftest import MakeContext, context_in
from .sparse import config_for, filled, sparsify, untrained

MODEL = LlmConfig(layers=2, hidden=16, heads=2, item_dim=8, dropout=0.0)
NAME = "1.mlp.up_proj"
Run = Callable[[Any, Any, Context], Any]
STAGES: dict[str, tuple[StageConfig, Run]] = {
    "quantize": (
        QuantizeConfig.model_validate({"of": "source", "as": "x", "scheme": "int8-dynamic"}),
        quantize,
    ),
    "prune-depth": (PruneDepthConfig.model_validate({"of": "source", "as": "x", "keep": 1}), prune_depth),
    "prune-depth to fresh weights": (
        PruneDepthConfig.model_validate({"of": "source", "as": "x", "keep": 1, "init": "fresh"}),
        prune_depth,
    ),
    "sparsify alike": (config_for(pattern="2:4"), sparsify_stage),
    "sparsify further": (config_for(sparsity=0.75), sparsify_stage),
    "prune-width": (PruneWidthConfig.model_validate({"of": "source", "as": "x", "ffn": 24}), prune_width),
    "adapt": (AdaptConfig.model_validate({"stage": "adapt", "of": "source", "as": "x"}), adapt),
    "train": (
        TrainConfig.model_validate({"stage": "train", "start_from": "source", "as": "x", "epochs": 1}),
        train,
    ),
    "distill": (
        DistillConfig.model_validate(
            {
                "stage": "distill",
                "of": "source",
                "teacher": "source",
                "as": "x",
                "epochs": 1,
                "method": "logits",
            }
        ),
        distill,
    ),
    "depth-profile that retrains": (
        DepthProfileConfig.model_validate(
            {"stage": "depth-profile", "of": "source", "as": "x", "retrain": True, "keep": [2], "epochs": 1}
        ),
        profile,
    ),
}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Bound:
    """Random weights with 2:4 zeros, as the stage sparsify leaves them."""
    home = tmp_path_factory.mktemp("sparse")
    source = untrained(home / "dense", prepared, MODEL)
    return sparsify(source, lambda name: context_in(home / name, prepared), pattern="2:4")[0]


def fill(matrices: dict[str, torch.Tensor]) -> None:
    """Every zero of the first 4 rows, of 48."""
    some = matrices[NAME][:4]
    some[some == 0] = 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_refuses_zeros_that_are_not_there_and_says_how_to_mend_it(
    stage: str, sparse: Bound, tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    broken = filled(sparse, tmp_path / "filled", prepared, fill)
    before, context = folder_digest(broken.path), make_context("refused")
    config, run = STAGES[stage]
    with pytest.raises(InputError) as error:
        run(config, {"source": broken}, context)
    told = str(error.value)
    assert f"{NAME} has 45.8% zeros, but the checkpoint notes 50.0%: something has filled them" in told
    assert error.value.where in (str(broken.path), "the checkpoint source")
    assert "fix: take the checkpoint as the stage sparsify wrote it, or delete `sparsity`" in told
    assert error.value.exit_code == 2
    assert not (context.folder / "checkpoint").exists() and folder_digest(broken.path) == before


def test_zeros_that_have_moved_are_no_longer_2_to_4(
    sparse: Bound, tmp_path: Path, prepared: Prepared
) -> None:
    def move(matrices: dict[str, torch.Tensor]) -> None:
        row = matrices[NAME][0]
        row.copy_(row.sort().values)  # as many zeros, in a row

    moved = filled(sparse, tmp_path / "moved", prepared, move)
    model, note = load_checkpoint(moved.path), noted(read_info(moved.path).about, "")
    with pytest.raises(InputError, match=r"here: the zeros do not lie 2:4, as the checkpoint notes"):
        check_zeros(model, note, "here")
    assert note is not None
    check_zeros(model, note.model_copy(update={"pattern": "unstructured"}), "here")


def test_the_mended_checkpoint_counts_as_dense_and_is_pruned_again(
    sparse: Bound, tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    broken = filled(sparse, tmp_path / "filled", prepared, fill)
    file = broken.path / "config.json"
    config = read_json(file)
    del config["about"]["sparsity"]
    write_json(file, config)
    again, metrics = sparsify(broken, make_context, "again", pattern="2:4")
    assert metrics["share_of_body_matrices"] == 0.5
    model = load_checkpoint(again.path)
    check_zeros(model, noted(read_info(again.path).about, ""), "")
    assert len(body_linears(model.bodies()["user"])) == 14


def test_more_zeros_than_noted_are_no_fault(
    sparse: Bound, tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    emptier = filled(sparse, tmp_path / "emptier", prepared, lambda matrices: matrices[NAME][:4].zero_())
    context = make_context("cut")
    prune_depth(
        PruneDepthConfig.model_validate({"of": "source", "as": "x", "keep": [1]}),
        {"source": emptier},
        context,
    )
    note = noted(read_info(context.folder / "checkpoint").about, "")
    assert note is not None and note.matrices["0.mlp.up_proj"] > 0.5
