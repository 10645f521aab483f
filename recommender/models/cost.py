"""Cost formulas of models, counted from their modules: linear maps, attention, norms, tables."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recommender.cost import Coefficients, CostFormulas, Count, PartCost, PartName

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender

PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
WIDTHS: Mapping[str, float] = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int4": 0.5}
"""Bytes of a weight, without scales."""

ID_BYTES, ANSWER_BYTES = 8, 12  # an item's row; a row with its score
RMS_FLOPS, LAYER_FLOPS = 4, 7
"""Of a norm per element: square, sum, scale, weight; with the mean: sum, subtract, bias as well."""

EVERYWHERE = ("k_proj", "v_proj", "key_value", "input_layernorm", "ln_1", "self_attn_layer_norm", "k_norm")
"""Modules of a last block that is computed for the last position only, which still run at all positions."""

FUSED = ("qkv_proj", "query_key_value", "c_attn")
"""Linear maps to query, key and value at once; there the query's part is for the last position only."""


class Heads(NamedTuple):
    """Of the attention in a block."""

    number: int
    size: int
    key_value: int  # heads of keys and values

    @property
    def flops(self) -> int:
        """Of one query over one key: q x k and its weight x v, all heads."""
        return 4 * self.number * self.size


class ModelParts(NamedTuple):
    """What a model says of its own cost; scoring and top-k are the same for all."""

    embedding: PartCost
    blocks: PartCost
    head: PartCost
    extra_positions: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    weights: torch.dtype = torch.float32  # of the products in the blocks
    around: Mapping[PartName, Sequence[nn.Linear]] = {}
    """Linear maps outside of the blocks, by the part that counts them."""


def cost_card(
    model: "SequentialRecommender", *, precision: str | None = None, table_precision: str | None = None
) -> dict[str, Any] | None:
    """The cost formulas of a model as plain JSON (`recommender.cost.CostFormulas`); None: not known.

    `precision`: of a variant whose linear maps, in the blocks and around them, are stored otherwise (int8,
    bf16, ...); `table_precision`: the same of the item table that is scored. Raises KeyError for a precision
    not in `WIDTHS`.
    """
    own = model.costs()
    if own is None:
        return None
    table = model.item_table()
    table_precision = table_precision or PRECISIONS[table.dtype]
    stored = precision or PRECISIONS[own.weights]
    saved = {} if precision is None else _saved(model, own, WIDTHS[precision])
    parts: dict[PartName, PartCost] = {
        "embedding": _lighter(own.embedding, saved.get("embedding", 0)),
        "blocks": _lighter(own.blocks, saved.get("blocks", 0)),
        "head": _lighter(own.head, saved.get("head", 0)),
        "scoring": scoring_cost(table, WIDTHS[table_precision]),
        "top_k": PartCost(elementwise={"user_row": 1}, bytes={"answer": ANSWER_BYTES}),
    }
    formulas = CostFormulas(
        precision=stored,
        table_precision=table_precision,
        rows=len(table),
        max_length=model.max_length,
        extra_positions=own.extra_positions,
        shapes=own.shapes,
        parts=parts,
    )
    return formulas.model_dump(mode="json")


def scoring_cost(table: Tensor, width: float) -> PartCost:
    """Of users against the whole item table, a number of which takes `width` bytes when it is read."""
    size = table.shape[1]
    return PartCost(products={"user_row": 2 * size}, bytes={"row": size * width})


def _saved(model: "SequentialRecommender", own: ModelParts, width: float) -> dict[PartName, float]:
    """Bytes by part that linear maps need less, where a weight takes `width` bytes."""
    inside = sum(inputs * outputs for inputs, outputs in _all_shapes(model))
    saved: dict[PartName, float] = {"blocks": inside * (WIDTHS[PRECISIONS[own.weights]] - width)}
    for part, maps in own.around.items():
        weights = [each.weight for each in maps]
        saved[part] = sum(each.numel() * (each.element_size() - width) for each in weights)
    return saved


def _lighter(part: PartCost, saved: float) -> PartCost:
    """The same work with fewer bytes of weights."""
    if not saved:
        return part
    return part.model_copy(update={"bytes": {**part.bytes, "call": part.bytes.get("call", 0.0) - saved}})


def _all_shapes(model: "SequentialRecommender") -> Iterator[tuple[int, int]]:
    for body in model.bodies().values():
        for block in body.blocks:
            yield from (shape for _, shape in linear_maps(block))


def linear_maps(block: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """(last part of its name, (inputs, outputs)) of every linear map in a block."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            yield name.rpartition(".")[2], (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            yield name.rpartition(".")[2], (module.weight.shape[0], module.weight.shape[1])


def norms(block: nn.Module, heads: Heads | None = None) -> Iterator[tuple[str, int]]:
    """(last part of its name, FLOPs per position) of every norm; norms of heads count for each head."""
    for name, module in block.named_modules():
        layer = isinstance(module, nn.LayerNorm)
        if not layer and not type(module).__name__.endswith("RMSNorm"):
            continue
        last = name.rpartition(".")[2]
        assert isinstance(module.weight, Tensor)
        times = 1
        if heads is not None and last in ("q_norm", "k_norm"):
            times = heads.number if last == "q_norm" else heads.key_value
        yield last, times * module.weight.numel() * (LAYER_FLOPS if layer else RMS_FLOPS)


def blocks_cost(
    blocks: Sequence[nn.Module], heads: Heads, *, last_only: bool, also_everywhere: Sequence[str] = ()
) -> PartCost:
    """Of a stack of blocks; `last_only`: the last one computes no more than the last position needs.

    `also_everywhere`: more names of modules that run at all positions of such a block.
    """
    products: Counter[Count] = Counter()
    elementwise: Counter[Count] = Counter()
    everywhere = {*EVERYWHERE, *also_everywhere}
    for number, block in enumerate(blocks):
        last = last_only and number == len(blocks) - 1
        products["last_pair" if last else "pair"] += heads.flops
        for name, (inputs, outputs) in linear_maps(block):
            query = heads.number * heads.size if name in FUSED else outputs
            at_last = 0 if not last or name in everywhere else query
            products["user"] += 2 * inputs * at_last
            products["position"] += 2 * inputs * (outputs - at_last)
        for name, flops in norms(block, heads):
            elementwise["user" if last and name not in everywhere else "position"] += flops
    weights = {"call": float(sum(stored_bytes(block) for block in blocks))}
    return PartCost(products=coefficients(products), elementwise=coefficients(elementwise), bytes=weights)


def coefficients(found: "Counter[Count]") -> Coefficients:
    """Those that are not 0."""
    return {name: float(value) for name, value in found.items() if value}


def shapes_of(blocks: Sequence[nn.Module]) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of the linear maps of the blocks, each once."""
    return tuple(dict.fromkeys(shape for block in blocks for _, shape in linear_maps(block)))


def stored_bytes(module: nn.Module) -> int:
    """Of all parameters of a module."""
    return sum(each.numel() * each.element_size() for each in module.parameters())


def row_bytes(table: Tensor) -> int:
    """Of one row of a table."""
    return int(table.shape[-1]) * table.element_size()
