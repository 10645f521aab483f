"""A scoring graph whose only dynamic axis is the batch, as an engine is built from it.

Lengths are fixed, whatever followed them becomes a constant, and the padding mask is read directly: the
range, gather and shape operators of the canonical graph go away. A table that is to be refitted may have
spare rows; which of its rows exist is then a weight of its own, `ROWS`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript import optimizer

from export.body import item_table, scoring_product
from export.fast.masks import plain_padding
from export.fast.shapes import constant_reshapes
from export.fast.surgery import dims, insert, integers, maker, nodes_of, replace, store
from recommender.errors import StageError

TABLE, ROWS = "item_table", "rows"
"""Names of the weights that a refit replaces: [rows, D], and [1, rows] of 0 or -inf."""
TYPES = {ir.DataType.FLOAT: "FLOAT", ir.DataType.FLOAT16: "HALF", ir.DataType.BFLOAT16: "BF16"}
LARGEST_FOLDED = 1 << 20
"""Entries of a value that is computed beforehand: a causal mask of 1,000 items."""


def static_graph(canonical: ir.Model, *, length: int, seen: int) -> ir.Model:
    """The graph for histories of `length` items and `seen` masked rows; the given one is left as it is."""
    model = canonical.clone()
    _fix(model, {"seen": seen, "seen + 1": seen + 1})
    plain_padding(model, length)
    plain_lookups(model)
    constant_reshapes(model)
    _fix(model, {"length": length})
    optimizer.fold_constants(model, onnx_shape_inference=False, output_size_limit=LARGEST_FOLDED)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    item_table(model).name = TABLE
    return model


def plain_lookups(model: ir.Model) -> int:
    """GatherND(table, Unsqueeze(rows, -1)) -> Gather(table, rows); returns how many."""
    found = 0
    for node in nodes_of(model.graph, "GatherND"):
        widened = maker(node.inputs[1], "Unsqueeze")
        last = None if node.inputs[1] is None else dims(node.inputs[1])
        if widened is None or last is None or last[-1] != 1 or "batch_dims" in node.attributes:
            continue
        if integers(widened.inputs[1]) not in ([-1], [len(last) - 1]):
            continue
        made = insert(node, "Gather", [node.inputs[0], widened.inputs[0]], {"axis": 0}, like=node.outputs[0])
        replace(node.outputs[0], made.outputs[0])
        found += 1
    common.RemoveUnusedNodesPass()(model)
    return found


def _fix(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """Write sizes in the place of axes with these names."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            old = [size if isinstance(size, int) else size.value for size in value.shape]
            value.shape = ir.Shape([sizes.get(str(size), size) for size in old])


def with_spare_rows(model: ir.Model, rows: int, n_items: int) -> ir.Model:
    """The same graph with a table of `rows` rows, of which 1 to n_items exist; both are named for a refit."""
    made = model.clone()
    table = item_table(made)
    assert table.const_value is not None
    scores = scoring_product(made).outputs[0]
    (reader,) = scores.uses()
    mask = store(made.graph, ROWS, existing(rows, n_items))
    masked = insert(reader.node, "Add", [scores, mask], like=scores).outputs[0]
    reader.node.replace_input_with(reader.idx, masked)
    replace_weights(made, {TABLE: padded(np.asarray(table.const_value.numpy()), rows)})
    return made


def replace_weights(model: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put arrays in the place of weights; shapes that followed those of the old ones are forgotten."""
    for name, array in arrays.items():
        weight = model.graph.initializers[name]
        assert weight.dtype is not None
        weight.const_value = ir.Tensor(array, dtype=weight.dtype, name=name)
        weight.shape = ir.Shape(array.shape)
    for value in (each for node in model.graph for each in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    common.ShapeInferencePass()(model)


def weights_of_table(model: ir.Model) -> tuple[str, ...]:
    """Names of the weights that hold the catalogue; in half precision they are called after it."""
    names = model.graph.initializers
    return tuple(each for each in names if each in (TABLE, ROWS) or each.startswith(f"{TABLE}_"))


def table_weights(
    model: ir.Model, table: NDArray[np.float32], n_items: int
) -> dict[str, tuple[str, NDArray[Any]]]:
    """{name: (TensorRT's name of its type, array)} of the weights that hold the catalogue in such a graph.

    table [n_items + 1, D] of items; it is filled up to the rows of the graph where these are masked. Raises
    StageError where its numbers leave the range of the type.
    """
    found = {}
    mask = model.graph.initializers.get(ROWS)
    rows = len(table) if mask is None or mask.shape is None else max(mask.shape.numpy()[1], len(table))
    for name in (each for each in weights_of_table(model) if each != ROWS):
        kind = model.graph.initializers[name].dtype
        assert kind is not None
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(padded(table, rows).astype(kind.numpy()))
        if not np.isfinite(array.astype(np.float32)).all():
            raise StageError(
                f"the item vectors leave the range of {kind.name}", where="item vectors",
                fix="export the artifact again without the variants in this precision",
            )  # fmt: skip
        found[name] = (TYPES[kind], array)
    if mask is not None:
        found[ROWS] = ("FLOAT", existing(rows, n_items))
    return found


def padded(table: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """[n, D] -> [rows, D]."""
    return np.pad(table, ((0, rows - len(table)), (0, 0)))


def existing(rows: int, n_items: int) -> NDArray[np.float32]:
    """[1, rows]: 0 for the rows of items (and of padding, which the graph masks), -inf for spare ones."""
    return np.where(np.arange(rows) <= n_items, 0, -np.inf).astype(np.float32)[None]
