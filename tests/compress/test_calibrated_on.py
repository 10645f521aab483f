"""What a stage is calibrated on: somebody's histories, and those that its source was trained on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune_depth
from compress.quantize import QuantizeConfig
from compress.quantize import run as quantize
from compress.sparsify import SparsifyConfig
from compress.sparsify import run as sparsify
from compress.width import PruneWidthConfig
from compress.width import run as prune_width
from recommender.data.config import EvaluationConfig
from recommender.errors import InputError
from recommender.files import folder_digest
from recommender.stage import Bound, Context, StageConfig

from .conftest import MakeContext, write_log

Run = Callable[[Any, Any, Context], Any]
OF = {"of": "source", "as": "made"}
STAGES: dict[str, tuple[StageConfig, Run]] = {
    "quantize": (QuantizeConfig.model_validate({**OF, "scheme": "int8-static"}), quantize),
    "sparsify": (SparsifyConfig.model_validate(OF), sparsify),
    "prune-width": (PruneWidthConfig.model_validate({**OF, "ffn": 24}), prune_width),
    "prune-depth": (
        PruneDepthConfig.model_validate({**OF, "keep": 2, "importance": "block-influence"}),
        prune_depth,
    ),
}
each_stage = pytest.mark.parametrize("stage", STAGES)


def refused(stage: str, source: Bound, context: Context, match: str) -> None:
    """Refused with this message; nothing is written and the source stays as it is."""
    config, run = STAGES[stage]
    before = folder_digest(source.path)
    with pytest.raises(InputError, match=match) as error:
        run(config, {"source": source}, context)
    assert error.value.exit_code == 2 and error.value.where and error.value.fix
    assert not (context.folder / "checkpoint").exists() and folder_digest(source.path) == before


@each_stage
def test_nobody_with_a_history_is_refused(stage: str, teacher: Bound, make_context: MakeContext) -> None:
    context = make_context("refused")
    nobody = replace(context.split, valid=np.full_like(context.split.valid, -1))
    context.__dict__["split"] = nobody  # as a split that leaves no item for validation
    refused(stage, teacher, context, "there is nothing to calibrate on")


@each_stage
def test_users_without_a_training_history_are_refused(
    stage: str, teacher: Bound, make_context: MakeContext
) -> None:
    context = make_context("refused")
    bare = replace(context.split, valid=np.zeros_like(context.split.valid))
    context.__dict__["split"] = bare  # as a split that holds the first item of everybody out
    refused(stage, teacher, context, "no user has a training history and a validation item")


@each_stage
def test_histories_of_another_log_are_refused(
    stage: str, tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    """Of the same catalogue, so only the digest of the log tells."""
    other = write_log(tmp_path / "histories", seed=5)
    refused(stage, teacher, make_context("refused", prepared=other), "trained on other histories")


@each_stage
def test_histories_of_another_catalogue_are_refused(
    stage: str, tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    other = write_log(tmp_path / "catalogue", prefix="x")
    refused(stage, teacher, make_context("refused", prepared=other), "another data set")


@each_stage
def test_another_split_is_refused(stage: str, teacher: Bound, make_context: MakeContext) -> None:
    """Its training part may hold what the source was validated or tested on."""
    evaluation = EvaluationConfig.model_validate({"ks": (1, 10), "split": {"temporal": 0.2}})
    refused(stage, teacher, make_context("refused", evaluation=evaluation), "trained with another split")
