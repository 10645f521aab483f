"""Sparse checkpoints, as the tests of the stage sparsify make them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from compress.sparsify import SparsifyConfig, run
from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import ModelConfig
from recommender.models.linears import body_linears
from recommender.stage import Bound

from .conftest import ITEMS, MAX_LENGTH, MakeContext, bound

METHODS = ("magnitude", "wanda", "sparsegpt")


def config_for(**values: Any) -> SparsifyConfig:
    return SparsifyConfig.model_validate({"stage": "sparsify", "of": "source", "as": "sparse", **values})


def sparsify(
    source: Bound, make_context: MakeContext, name: str = "sparse", **values: Any
) -> tuple[Bound, Mapping[str, Any]]:
    context = make_context(name)
    metrics = run(config_for(**values), {"source": source}, context).metrics
    return bound(name, context.folder), metrics


def untrained(
    folder: Path, prepared: Prepared, config: ModelConfig, break_it: Callable[[Any], None] | None = None
) -> Bound:
    """A checkpoint with random weights."""
    model = build_model(config, n_items=ITEMS, max_length=MAX_LENGTH, seed=3)
    if break_it is not None:
        with torch.no_grad():
            break_it(model)
    save_checkpoint(model, folder / "checkpoint", prepared=prepared, model_config=config, about={"seed": 1})
    return bound(folder.name, folder)


def matrices(checkpoint: Bound) -> dict[str, torch.Tensor]:
    body = load_checkpoint(checkpoint.path).bodies()["user"]
    return {name: each.matrix() for name, each in body_linears(body).items()}


def filled(source: Bound, folder: Path, prepared: Prepared, change: Callable[[Any], None]) -> Bound:
    """A copy of a sparse checkpoint with other weights and the old note: what a tool that knows of no zeros
    leaves behind. `change` gets the matrices of the body by name.
    """
    model, info = load_checkpoint(source.path), read_info(source.path)
    with torch.no_grad():
        change({name: each.matrix() for name, each in body_linears(model.bodies()["user"]).items()})
    save_checkpoint(
        model, folder / "checkpoint", prepared=prepared, model_config=info.model_config, about=info.about
    )
    return bound(folder.name, folder)
