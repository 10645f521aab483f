"""Opens a model in one of the ways of `recommender.ways`."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recommender.models.interface import SequentialRecommender
from recommender.program import ProgramScorer
from recommender.ranking import TorchScorer
from recommender.ways import EAGER, check_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

KEPT = "inv_freq"
"""Part of the names of buffers that rotary angles are made of: in bf16 they would be wrong at once."""


def scorer_in(way: str, model: SequentialRecommender) -> TorchScorer | ProgramScorer:
    """A model in eval mode as a scorer; with bf16 the model itself is changed.

    tf32 is switched on for the whole process. Raises InputError for a way that is not known, and for one that
    needs CUDA where the model is on another device.
    """
    scorer = TorchScorer(model)
    if way == EAGER:
        return scorer
    chosen = check_way(way, scorer.device.type)
    if chosen.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    table = None
    if chosen.precision == "bf16":
        table = scoring_table(model, scorer.device)
        in_bf16(model)
    if chosen.compiled:
        return ProgramScorer(model, table, graphs=chosen.graphs)
    return TorchScorer(model, table)


def scoring_table(model: SequentialRecommender, device: torch.device) -> Tensor:
    """The item table [n_items + 1, D] of a model whose blocks compute in bf16.

    On a GPU in bf16, as its products then have float32 sums; elsewhere sums would be rounded as well, so that
    many items tied, and it stays in float32.
    """
    table = model.item_table().detach()
    return table.to(torch.bfloat16) if device.type == "cuda" else table.float().clone()


def in_bf16(model: "nn.Module") -> None:
    """Weights and buffers to bf16 in place, but for the angles of rotary positions."""
    kept = [(module, name, buffer) for module, name, buffer in _buffers(model) if KEPT in name]
    model.to(torch.bfloat16)
    for module, name, buffer in kept:
        setattr(module, name, buffer)


def _buffers(model: "nn.Module") -> "Iterator[tuple[nn.Module, str, Tensor]]":
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            yield module, name, buffer
