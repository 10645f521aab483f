"""The body as onnxruntime runs it fastest: the same function, rewritten pass by pass.

Each pass looks for one form and leaves everything else as it is, so a model of an unknown family loses
speed and never its result. What onnxruntime fuses by itself (QuickGelu, biases) is left to it; what was
measured not to pay (one matrix for query, key and value, or for gate and up) is not done.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.attention import join_heads
from export.fast.masks import add_masks, plain_padding
from export.fast.products import split_products
from export.fast.rotary import rotate_by_tables, rotate_last_query
from export.fast.shapes import constant_reshapes
from export.fast.surgery import CONTRIB
from export.fast.tables import tabulate
from recommender.errors import InputError

NARROW_OR_WIDE = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class FastBody:
    """A body for onnxruntime, and how often each pass fired."""

    model: ir.Model  # inputs and output as those of the body it was made from
    fired: dict[str, int]  # pass -> places it changed; 0: its form was not there


def fast_body(body: ir.Model, *, max_length: int) -> FastBody:
    """Rewrite a body (see `export.body.cut_body`) for onnxruntime; the given one is left as it is.

    Tables reach to `max_length` items, so hand in no longer history. Operators of the domain com.microsoft
    come in. Equal to the body up to rounding. Raises InputError unless max_length >= 1 and the body computes
    in float32.
    """
    if max_length < 1:
        raise InputError(f"max_length is {max_length}", where="export", fix="give the model's own, 1 or more")
    other = {value.dtype.name for value in body.graph.initializers.values() if value.dtype in NARROW_OR_WIDE}
    if other:
        raise InputError(
            f"the body computes in {', '.join(sorted(other))}", where="export", fix="export a float32 model"
        )
    model = body.clone()
    passes: dict[str, Callable[[ir.Model], int]] = {
        "split_products": split_products,
        "tabulate": lambda model: tabulate(model, max_length),
        "plain_padding": lambda model: plain_padding(model, max_length),
        "add_masks": add_masks,
        "rotate_by_tables": rotate_by_tables,
        "rotate_last_query": rotate_last_query,
        "join_heads": join_heads,
        "constant_reshapes": constant_reshapes,
    }
    fired = {name: rewrite(model) for name, rewrite in passes.items()}
    common.DeduplicateInitializersPass(size_limit=1 << 62)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    if any(node.domain == CONTRIB for node in model.graph):
        model.graph.opset_imports[CONTRIB] = 1
    return FastBody(model, fired)
