"""Training through the rounding: the student of a quantized checkpoint never leaves its grid.

Every matrix of the scheme is a parametrization of a float32 weight: what the model computes with is the
nearest point of the grid, and gradients pass straight through the rounding where nothing is clipped. The
steps of the grid are learnt with it (LSQ, Esser et al., ICLR 2020, arXiv 1902.08153); deviation: each is
trained as the logarithm of its ratio to the step that it started from, so that Adam moves it by a share of
itself, not by an amount.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.quantization.grid import expanded
from compress.quantization.simulation import activations
from recommender.models.interface import SequentialRecommender
from recommender.models.linears import quantizable
from recommender.quantization_scheme import (
    ITEM_TABLE,
    TABLE_LEVELS,
    Levels,
    Quantization,
)


class _Nearest(torch.autograd.Function):
    """The nearest level; the gradient is 1 inside of the levels and 0 where it was clipped."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward((given >= low - 0.5) & (given <= high + 0.5))
        return given.round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


class OnGrid(nn.Module):
    """A weight -> the nearest point of its grid, whose steps are trained."""

    scales: Tensor

    def __init__(
        self, scales: Tensor, levels: Levels, group: int | None, *, transposed: bool = False
    ) -> None:
        """`scales` [out, groups]: where the steps start; `transposed`: the weight lies as [in, out]."""
        super().__init__()
        self.levels, self.group, self.transposed = levels, group, transposed
        self.register_buffer("scales", scales.clone())
        self.shift = nn.Parameter(torch.zeros(scales.numel()))  # flat: no weight decay pulls at it

    def steps(self) -> Tensor:
        """[out, groups], as they are now."""
        return self.scales * self.shift.exp().view_as(self.scales)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that is computed with, as it lies."""
        matrix = weight.T if self.transposed else weight
        steps = expanded(self.steps(), self.group, matrix.shape[1])
        numbers = cast(Tensor, _Nearest.apply(matrix / steps, *self.levels))  # type: ignore[no-untyped-call]
        return (numbers * steps).T if self.transposed else numbers * steps


@contextmanager
def trained_on_grid(model: SequentialRecommender, quantization: Quantization) -> Iterator[dict[str, Tensor]]:
    """While open, the model computes with weights on the grid and inputs as served, and both can be trained.

    Yields a dict that holds the learnt scales once it is closed; the weights then are plain values on their
    grids. Formats of bitsandbytes have no grid to train on: the caller refuses them.
    """
    scheme = quantization.scheme
    linears = quantizable(model)
    modules: dict[str, nn.Module] = {}
    learnt: dict[str, Tensor] = {}
    for name, matrix in scheme.matrices.items():
        if matrix.levels is None:
            continue
        linear = linears[name]
        scales = torch.from_numpy(quantization.scales[name].copy())
        grid = OnGrid(scales, matrix.levels, matrix.group, transposed=linear.transposed)
        parametrize.register_parametrization(linear.module, "weight", grid)
        modules[name] = linear.module
    if scheme.item_table != "fp32":
        scales = torch.from_numpy(quantization.scales[ITEM_TABLE].copy())
        table = trained_table(model)
        if table is None:
            learnt[ITEM_TABLE] = scales  # frozen: it stays where it is
        else:
            parametrize.register_parametrization(
                table, "weight", OnGrid(scales, TABLE_LEVELS[scheme.item_table], None)
            )
            modules[ITEM_TABLE] = table
    try:
        with activations(linears, scheme.matrices):
            yield learnt
    finally:
        for name, module in modules.items():
            (grid,) = cast(Any, module).parametrizations.weight
            learnt[name] = grid.steps().detach().cpu()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def trained_table(model: SequentialRecommender) -> nn.Embedding | None:
    """The embedding that is the model's item table, where it is trained."""
    items = getattr(model, "items", None)
    trained = isinstance(items, nn.Embedding) and items.weight.requires_grad
    return items if trained else None
