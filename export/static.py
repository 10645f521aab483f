"""A scoring graph whose only dynamic axis is the batch, as an engine is built from it.

Lengths are fixed, whatever followed them becomes a constant, and the padding mask is read directly: the
range, gather and shape operators of the canonical graph go away. A table that is to be refitted may have
spare rows; which of its rows exist is then a weight of its own, `ROWS`.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript import optimizer

from export.body import item_table, scoring_product
from export.fast.masks import plain_padding
from export.fast.shapes import constant_reshapes
from export.fast.surgery import insert, store

TABLE, ROWS = "item_table", "rows"
"""Names of the weights that a refit replaces: [rows, D], and [1, rows] of 0 or -inf."""
LARGEST_FOLDED = 1 << 20
"""Entries of a value that is computed beforehand: a causal mask of 1,000 items."""


def static_graph(canonical: ir.Model, *, length: int, seen: int) -> ir.Model:
    """The graph for histories of `length` items and `seen` masked rows; the given one is left as it is."""
    model = canonical.clone()
    _fix(model, {"seen": seen, "seen + 1": seen + 1})
    plain_padding(model, length)
    constant_reshapes(model)
    _fix(model, {"length": length})
    optimizer.fold_constants(model, onnx_shape_inference=False, output_size_limit=LARGEST_FOLDED)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return model


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
    array = np.asarray(table.const_value.numpy())
    table.const_value = ir.tensor(padded(array, rows), name=TABLE)
    table.name, table.shape = TABLE, ir.Shape([rows, array.shape[1]])
    product = scoring_product(made)
    scores = product.outputs[0]
    readers = list(scores.uses())
    node = readers[0].node
    mask = store(made.graph, ROWS, existing(rows, n_items))
    masked = insert(node, "Add", [scores, mask], like=scores).outputs[0]
    for reader in readers:
        reader.node.replace_input_with(reader.idx, masked)
    for value in (each for node in made.graph for each in node.outputs):
        if value.shape is not None and not value.is_graph_output() and array.shape[0] in value.shape:
            value.shape = None  # a shape that held the old number of rows
    return made


def padded(table: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """[n, D] -> [rows, D]."""
    return np.pad(table, ((0, rows - len(table)), (0, 0)))


def existing(rows: int, n_items: int) -> NDArray[np.float32]:
    """[1, rows]: 0 for the rows of items (and of padding, which the graph masks), -inf for spare ones."""
    return np.where(np.arange(rows) <= n_items, 0, -np.inf).astype(np.float32)[None]
