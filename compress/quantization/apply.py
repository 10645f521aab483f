"""A model, its matrices and the histories it is calibrated on: what the stage `quantize` does with them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, Self

import torch
from torch import Tensor

from compress.calibration import Calibration, sample, validation_loss
from compress.finite import check_finite, check_seen
from compress.quantization.damage import Answers, Damage, answers, damage, ndcg, ndcg_change
from compress.quantization.grid import on_grid, scales_of
from compress.quantization.inputs import hessians, largest_inputs
from compress.quantization.rounding import round_in_place, tried
from compress.quantization.sensitivity import Mix, Sensitivities, mix, sensitivities
from compress.quantization.simulation import activations
from recommender.errors import InputError
from recommender.metrics import Float64
from recommender.models.interface import SequentialRecommender
from recommender.models.linears import PROJECTIONS, Linear, quantizable
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
    linears: Mapping[str, Linear]  # of the body, and the projections around it
    calibration: Calibration
    before: Answers  # of the model as it came
    ndcg_before: Float64  # [n] NDCG@10 of each drawn user's validation item
    context: Context

    @classmethod
    def on(cls, model: SequentialRecommender, context: Context, *, users: int, name: str) -> Self:
        """Draw the users.

        Raises InputError where there are none, or weights or answers of `name` are not finite.
        """
        linears = quantizable(model)
        check_finite(model, name, where="quantize.of")
        drawn = sample(
            context.prepared, context.split, users=users, max_length=model.max_length, seed=context.seed
        )
        before = answers(model, drawn)
        check_seen(before.vectors, f"the user vectors of {name!r}", where="quantize.of")
        return cls(model, linears, drawn, before, ndcg(model, drawn, context), context)

    def loss(self) -> float:
        """Mean cross-entropy of the held-out items of the drawn users, in nats."""
        layers = len(self.model.bodies()["user"].blocks)
        return validation_loss(self.model, self.calibration)(range(layers))

    def damage(self) -> Damage:
        """What has happened to the answers since the model came, for as long as it is as it is now."""
        return damage(self.before, answers(self.model, self.calibration), self.calibration)

    def served(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """What is measured of a model that is rounded, with the inputs of quantized matrices rounded, too."""
        with activations(self.linears, scheme.matrices):
            after = ndcg(self.model, self.calibration, self.context)
            lost = self.damage().as_json() | ndcg_change(self.ndcg_before, after)
            return {"validation_loss": self.loss(), "damage": lost}

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

    def sensitivities(
        self, options: Mapping[str, Sequence[MatrixScheme]], method: Method = "rtn"
    ) -> Sensitivities:
        """What each matrix alone does, rounded by `method`; the model is left as it was."""
        return sensitivities(self.linears, options, self.damage, partial(self._hessians, method))

    def mixed(
        self,
        options: Mapping[str, Sequence[MatrixScheme]],
        *,
        budget: float,
        method: Method = "rtn",
        item_table: TableBits = "fp32",
    ) -> tuple[Mix, Sensitivities]:
        """The smallest matrices within a budget, beside this item table, and what each does alone.

        What is measured of all together are the very matrices and table that `apply` writes.
        """
        found = self.sensitivities({name: each[:-1] for name, each in options.items()}, method)
        with self._table_tried(item_table):
            first = self.damage().kl if item_table != "fp32" else 0.0

        def measure(schemes: Schemes) -> Damage:
            with (
                tried(self.linears, schemes, partial(self._round, method=method)),
                self._table_tried(item_table),
            ):
                return self.damage()

        return mix(self.linears, options, found, budget=budget, measure=measure, first=first), found

    @contextmanager
    def _table_tried(self, bits: TableBits) -> Iterator[None]:
        """While open, the item table is rounded; it is put back to the bit."""
        if bits == "fp32":
            yield
            return
        before = self.model.item_table().detach().clone()
        try:
            round_table(self.model, bits)
            yield
        finally:
            with torch.no_grad():
                self.model.item_table().copy_(before)

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
        """Bytes of the matrices and of the item table, in fp32 and as the scheme holds them; what stays.

        The matrices are those of the body, and the projections that the scheme names. `float_weights`: how
        many numbers each matrix has that stays in float32, of all there are.
        """
        every = {name: _shape(linear.matrix()) for name, linear in self.linears.items()}
        shapes = {
            name: each for name, each in every.items() if name not in PROJECTIONS or name in scheme.matrices
        }
        fp32, table = MatrixScheme(weights="fp32"), _shape(self.model.item_table())
        held = {name: packed_bytes(*shape, scheme.matrices.get(name, fp32)) for name, shape in shapes.items()}
        left = [name for name in every if scheme.matrices.get(name, fp32).kind == "fp32"]
        return {
            "matrices": len(held),
            "matrices_quantized": sum(matrix.kind != "fp32" for matrix in scheme.matrices.values()),
            "matrix_bytes_before": sum(packed_bytes(*shape, fp32) for shape in shapes.values()),
            "matrix_bytes": sum(held.values()),
            "float_weights": {name: every[name][0] * every[name][1] for name in left},
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
