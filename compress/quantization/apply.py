"""A model, its matrices and the histories it is calibrated on: what the stage `quantize` does with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, Self

import torch
from torch import Tensor

from compress.calibration import Calibration, sample, validation_loss
from compress.finite import check_finite
from compress.quantization.grid import on_grid, scales_of
from compress.quantization.inputs import hessians, largest_inputs
from compress.quantization.rounding import round_in_place, tried
from compress.quantization.sensitivity import Mix, Rises, mix, rises
from compress.quantization.simulation import activations
from recommender.errors import InputError
from recommender.models.interface import SequentialRecommender
from recommender.models.linears import Linear, body_linears
from recommender.quantization_scheme import (
    ITEM_TABLE,
    TABLE_LEVELS,
    MatrixScheme,
    Quantization,
    QuantizationScheme,
    TableBits,
    packed_bytes,
)
from recommender.stage import Context

Schemes = Mapping[str, MatrixScheme]
Method = Literal["rtn", "gptq"]


@dataclass(frozen=True)
class Work:
    """A model that is being quantized."""

    model: SequentialRecommender
    linears: Mapping[str, Linear]
    calibration: Calibration

    @classmethod
    def on(cls, model: SequentialRecommender, context: Context, *, users: int, name: str) -> Self:
        """Draw the users. Raises InputError where there are none, or a weight of `name` is not finite."""
        linears = body_linears(model.bodies()["user"])
        check_finite(model, name, where="quantize.of")
        drawn = sample(
            context.prepared, context.split, users=users, max_length=model.max_length, seed=context.seed
        )
        return cls(model, linears, drawn)

    def loss(self) -> float:
        """Mean cross-entropy of the held-out items of the drawn users, in nats."""
        layers = len(self.model.bodies()["user"].blocks)
        return validation_loss(self.model, self.calibration)(range(layers))

    def loss_as_served(self, scheme: QuantizationScheme) -> float:
        """The same, with the inputs of quantized matrices rounded, too."""
        with activations(self.linears, scheme.matrices):
            return self.loss()

    def with_ranges(self, scheme: QuantizationScheme, *, percentile: float) -> QuantizationScheme:
        """The scheme with the input ranges measured that it wants and does not state."""
        wanted = {
            name: self.linears[name]
            for name, matrix in scheme.matrices.items()
            if matrix.activations == "static" and matrix.input_range is None
        }
        if not wanted:
            return scheme
        largest = largest_inputs(self.model, wanted, self.calibration, percentile=percentile)
        ranges = {
            name: scheme.matrices[name].model_copy(update={"input_range": (-value, value)})
            for name, value in largest.items()
        }
        matrices = {name: ranges.get(name, matrix) for name, matrix in scheme.matrices.items()}
        return scheme.model_copy(update={"matrices": matrices})

    def rises(
        self, options: Mapping[str, Sequence[MatrixScheme]], base: float, method: Method = "rtn"
    ) -> Rises:
        """What the loss gains by each matrix alone, rounded by `method`; the model is left as it was."""
        return rises(self.linears, options, self.loss, base, partial(self._hessians, method))

    def mixed(
        self,
        options: Mapping[str, Sequence[MatrixScheme]],
        base: float,
        *,
        budget: float,
        method: Method = "rtn",
    ) -> tuple[Mix, Rises]:
        """The smallest matrices within a budget, and what each loses alone.

        What is measured of all together are the very matrices that `apply` writes with this method.
        """
        found = self.rises({name: each[:-1] for name, each in options.items()}, base, method)

        def measure(schemes: Schemes) -> float:
            with tried(self.linears, schemes, partial(self._round, method=method)):
                return self.loss() - base

        return mix(self.linears, options, found, budget=budget, measure=measure), found

    def apply(self, scheme: QuantizationScheme) -> Quantization:
        """Round the matrices in place; what they and the item table lie on.

        Raises InputError for an item table that the model computes, and without bitsandbytes where the scheme
        needs it.
        """
        found = self._round(scheme.matrices, method=scheme.method)
        scales = {name: values.cpu().numpy() for name, values in found.items()}
        if scheme.item_table != "fp32":
            scales[ITEM_TABLE] = round_table(self.model, scheme.item_table).cpu().numpy()
        return Quantization(scheme, scales)

    def _round(self, schemes: Schemes, *, method: Method) -> dict[str, Tensor]:
        """Round matrices in place; their scales. GPTQ goes block by block: its inputs come from blocks that
        are quantized already."""
        scales: dict[str, Tensor] = {}
        by_block = sorted(schemes, key=lambda name: self.linears[name].block)
        for _, names in groupby(by_block, key=lambda name: self.linears[name].block):
            block = {name: schemes[name] for name in names}
            ours = {name: self.linears[name] for name, each in block.items() if each.levels is not None}
            scales |= round_in_place(self.linears, block, self._hessians(method, ours))
        return scales

    def _hessians(self, method: Method, linears: Mapping[str, Linear]) -> Mapping[str, Tensor]:
        """Of the inputs of these matrices as the model is now; none where they are rounded to nearest."""
        if method == "rtn" or not linears:
            return {}
        return hessians(self.model, linears, self.calibration)

    def bytes_of(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """Bytes of the body's matrices and of the item table, in fp32 and as the scheme holds them."""
        shapes = {name: _shape(linear.matrix()) for name, linear in self.linears.items()}
        fp32, table = MatrixScheme(weights="fp32"), _shape(self.model.item_table())
        held = {name: packed_bytes(*shape, scheme.matrices.get(name, fp32)) for name, shape in shapes.items()}
        return {
            "matrices": len(held),
            "matrices_quantized": sum(matrix.kind != "fp32" for matrix in scheme.matrices.values()),
            "matrix_bytes_before": sum(packed_bytes(*shape, fp32) for shape in shapes.values()),
            "matrix_bytes": sum(held.values()),
            "item_table_bytes_before": packed_bytes(*table, fp32),
            "item_table_bytes": packed_bytes(*table, MatrixScheme(weights=scheme.item_table)),
        }


def _shape(matrix: Tensor) -> tuple[int, int]:
    rows, width = matrix.shape
    return rows, width


def round_table(model: SequentialRecommender, bits: TableBits) -> Tensor:
    """Round the item table in place, a scale per item; the scales [n_items + 1, 1].

    Raises InputError for a table that the model computes from something else.
    """
    levels = TABLE_LEVELS[bits]
    table = model.item_table().detach()
    scales = scales_of(table, levels)
    values = on_grid(table, scales, levels)
    with torch.no_grad():
        table.copy_(values)
    if not torch.equal(model.item_table(), values):
        raise InputError(
            f"a {type(model).__name__} computes its item table, which cannot be held in {bits}",
            where="quantize.item_table",
            fix="leave item_table out",
        )
    return scales
