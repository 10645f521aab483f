"""Ways to run prune-width and to look at what it made."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from compress.width import PruneWidthConfig, run
from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound, Shape

from .conftest import MakeContext, bound

IMPORTANCES = ("activation", "taylor", "taylor-second")
importances = pytest.mark.parametrize("importance", IMPORTANCES)


def config_for(**values: Any) -> PruneWidthConfig:
    targets = {} if {"ffn", "heads", "kv_heads", "hidden"} & set(values) else {"ffn": 24}
    entries = {"of": "source", "as": "narrow", "calibration_users": 40} | targets | values
    return PruneWidthConfig.model_validate(entries)


def prune(
    source: Bound, make_context: MakeContext, name: str = "narrow", **values: Any
) -> tuple[Bound, Mapping[str, Any]]:
    context = make_context(name)
    metrics = run(config_for(**values), {"source": source}, context).metrics
    return bound(name, context.folder), metrics


def model_of(checkpoint: Bound) -> LlmRecommender:
    model = load_checkpoint(checkpoint.path)
    assert isinstance(model, LlmRecommender)
    return model


def changed(source: Bound, prepared: Prepared, name: str, change: Callable[[LlmRecommender], None]) -> Bound:
    """The checkpoint with other weights, beside it."""
    model, info = model_of(source), read_info(source.path)
    with torch.no_grad():
        change(model)
    folder = source.stage_folder.parent / name
    save_checkpoint(
        model, folder / "checkpoint", prepared=prepared, model_config=info.model_config, about={"seed": 1}
    )
    return bound(name, folder)


def kept_in(checkpoint: Bound) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((checkpoint.stage_folder / "kept.json").read_text())
    return kept


def shape_of(checkpoint: Bound) -> Shape:
    info = read_info(checkpoint.path)
    return Shape("checkpoint", info.blocks["user"], info.model_config, narrowed="width" in info.about)
