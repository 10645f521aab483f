"""What follows from the length alone is computed once, at export, for the longest history.

Cosines and sines of positions, causal and window masks: the canonical graph builds them in each call. Which
values these are is read from the graph, and what cut of a table they are is tried at every length, so that
nothing is assumed about the model.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.evaluate import (
    BATCH,
    BATCHES,
    CONTENT,
    LENGTH,
    MANY,
    at_sizes,
    dependence,
    lengths_to_try,
)
from export.fast.surgery import LAST, constant, insert, replace, store

LARGEST_TABLE = 1 << 22
"""Entries; a causal mask of 2048 x 2048. Longer ones are cheaper to compute than to load."""

ROUNDING = 1e-6


@dataclass
class _Candidate:
    """A value that follows the length (and is at most repeated over the batch), and the forms it may have."""

    value: ir.Value
    full: np.ndarray | None = None  # at the longest length and batch 1
    expanded: bool = False  # the first axis is the batch, all entries alike
    anchors: set[str] = field(default_factory=lambda: {"start", "end"})  # which cuts of `full` still fit
    growth: dict[int, int] = field(default_factory=dict)  # axis -> its size minus the length
    rows: dict[int, np.ndarray] = field(default_factory=dict)  # by length, while the shape never changes


def tabulate(model: ir.Model, max_length: int) -> int:
    """Replace values that follow the length alone by cuts of constant tables; returns how many.

    A value is replaced when at each length 1..max_length it equals the first or the last rows (of all axes
    that grow with the length) of its value at max_length, or when its shape is fixed and one entry per length
    is stored. Only floats and booleans that meet the content of a history are looked at.
    """
    candidates = [_Candidate(value) for value in _frontier(model.graph)]
    if not candidates:
        return 0
    _, _, fullest = next(at_sizes(model, [entry.value for entry in candidates], [max_length]))
    small = [entry for entry, full in zip(candidates, fullest, strict=True) if full.size <= MANY]
    large = [entry for entry, full in zip(candidates, fullest, strict=True) if full.size > MANY]
    for group, entries in ((small, 0), (large, MANY + 1)):
        lengths = lengths_to_try(max_length, entries)
        for batch, length, arrays in at_sizes(model, [entry.value for entry in group], lengths):
            for entry, array in zip(group, arrays, strict=True):
                _narrow(entry, array, batch, length, max_length)
    sizes = _Sizes(model.graph)
    done = sum(_write(entry, sizes, max_length) for entry in candidates)
    common.RemoveUnusedNodesPass()(model)
    return done


def _frontier(graph: ir.Graph) -> list[ir.Value]:
    """Values that follow sizes only, read by nodes that follow content."""
    follows = dependence(graph)
    found = []
    for node in graph:
        # what is cut from a table by one node already stays as it is
        if node.op_type in ("Slice", "Gather") and constant(node.inputs[0]) is not None:
            continue
        for value in node.outputs:
            if LENGTH not in follows[value] or CONTENT in follows[value] or value.is_graph_output():
                continue
            if any(CONTENT in follows[made] for user in value.consumers() for made in user.outputs):
                found.append(value)
    return found


def _narrow(entry: _Candidate, array: np.ndarray, batch: int, length: int, longest: int) -> None:
    """Strike out the forms that this value at this size does not have."""
    if array.dtype not in (np.float32, np.bool_) or array.ndim == 0:
        entry.anchors.clear()
        entry.full = None
        return
    if entry.full is None:
        if batch != BATCHES[0] or length != longest:
            return  # struck out before
        entry.full = array
    if array.shape[0] == batch != entry.full.shape[0] == 1:
        entry.expanded = True
        if not (array == array[:1]).all():
            entry.full = None
            return
        array = array[:1]
    if array.ndim != entry.full.ndim:
        entry.full = None
        return
    growth = {
        axis: size - length
        for axis, size in enumerate(array.shape)
        if size != entry.full.shape[axis] or axis in entry.growth
    }
    if length == longest - 1 and batch == BATCHES[0]:
        entry.growth = growth
    if length != longest and growth != entry.growth:
        entry.full = None
        return
    entry.anchors = {anchor for anchor in entry.anchors if _cut_equals(entry, array, anchor)}
    if array.shape == entry.full.shape and batch == BATCHES[0]:
        entry.rows[length] = array


def _cut_equals(entry: _Candidate, array: np.ndarray, anchor: str) -> bool:
    assert entry.full is not None
    cut = tuple(
        slice(None, size) if anchor == "start" else slice(whole - size, None)
        for size, whole in zip(array.shape, entry.full.shape, strict=True)
    )
    # the runtime rounds the last few entries of an array in another way than the others
    return bool(np.allclose(entry.full[cut], array, rtol=ROUNDING, atol=ROUNDING))


class _Sizes:
    """Batch and length of a call as values of shape [1], made where first wanted, in front of all nodes."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.first = graph, graph[0]
        self.items = next(value for value in graph.inputs if value.name == "items")
        self.known: dict[tuple[str, int], ir.Value] = {}

    def plus(self, axis: str, more: int) -> ir.Value:
        """Size of an axis plus a constant."""
        if (axis, more) not in self.known:
            if more == 0:
                start = 0 if axis == BATCH else 1
                made = insert(self.first, "Shape", [self.items], {"start": start, "end": start + 1})
            else:
                by = store(self.graph, "more", np.array([more], np.int64))
                made = insert(self.first, "Add", [self.plus(axis, 0), by])
            self.known[axis, more] = _one_integer(made)
        return self.known[axis, more]

    def minus(self, whole: int, more: int) -> ir.Value:
        """`whole` minus (length + more)."""
        total = store(self.graph, "whole", np.array([whole], np.int64))
        return _one_integer(insert(self.first, "Sub", [total, self.plus(LENGTH, more)]))


def _one_integer(node: ir.Node) -> ir.Value:
    made = node.outputs[0]
    made.shape, made.type = ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
    return made


def _write(entry: _Candidate, sizes: _Sizes, longest: int) -> bool:
    """Put the cheapest form that is left in the place of the value."""
    full = entry.full
    if full is None or full.size > LARGEST_TABLE:
        return False
    graph = sizes.graph
    if not entry.growth and entry.anchors:
        made = store(graph, "table", full)
    elif entry.growth and entry.anchors:
        made = _cut(entry, full, sizes)
    elif len(entry.rows) == longest and full.shape[0] == 1 and longest * full.size <= LARGEST_TABLE:
        table = np.concatenate([entry.rows[length] for length in range(1, longest + 1)])
        row = sizes.plus(LENGTH, -1)
        made = insert(sizes.first, "Gather", [store(graph, "table", table), row]).outputs[0]
    else:
        return False
    if entry.expanded:
        ones = store(graph, "ones", np.ones(full.ndim - 1, np.int64))
        target = insert(sizes.first, "Concat", [sizes.plus(BATCH, 0), ones], {"axis": 0}).outputs[0]
        made = insert(sizes.first, "Expand", [made, target]).outputs[0]
    made.shape = made.shape if made.is_initializer() else entry.value.shape
    made.type = ir.TensorType(ir.DataType.from_numpy(full.dtype))
    replace(entry.value, made)
    return True


def _cut(entry: _Candidate, full: np.ndarray, sizes: _Sizes) -> ir.Value:
    """The first or last rows of the table, on all axes that grow."""
    graph, axes = sizes.graph, sorted(entry.growth)
    table = store(graph, "table", full)
    zeros = store(graph, "starts", np.zeros(len(axes), np.int64))
    if "start" in entry.anchors:
        ends = [sizes.plus(LENGTH, entry.growth[axis]) for axis in axes]
        bounds = [zeros, _joined(sizes, ends)]
    else:
        starts = [sizes.minus(full.shape[axis], entry.growth[axis]) for axis in axes]
        bounds = [_joined(sizes, starts), store(graph, "ends", np.full(len(axes), LAST, np.int64))]
    which = store(graph, "axes", np.array(axes, np.int64))
    return insert(sizes.first, "Slice", [table, *bounds, which]).outputs[0]


def _joined(sizes: _Sizes, parts: list[ir.Value]) -> ir.Value:
    return parts[0] if len(parts) == 1 else insert(sizes.first, "Concat", parts, {"axis": 0}).outputs[0]
