"""What a value of a graph depends on, and its value where only sizes decide."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

BATCH, LENGTH, CONTENT = "batch", "length", "content"
BATCHES = (1, 3)
"""Batch sizes at which sizes are tried; 1 alone would hide what is broadcast."""
MANY, FEW = 1 << 16, 100
"""Values of more entries than 256 x 256 are tried at the first 100 lengths and at 100 spread ones."""


def dependence(graph: ir.Graph) -> dict[ir.Value, frozenset[str]]:
    """For each value: does it follow the batch size, the length, the content of the inputs? Weights: none."""
    known = {value: frozenset({CONTENT}) for value in graph.inputs}
    nothing: frozenset[str] = frozenset()
    for node in graph:
        if node.op_type == "Shape":
            follows = _follows_size(node, known)
        else:
            follows = nothing.union(*(known.get(v, nothing) for v in node.inputs if v is not None))
        known.update(dict.fromkeys(node.outputs, follows))
    return known


def _follows_size(node: ir.Node, known: dict[ir.Value, frozenset[str]]) -> frozenset[str]:
    """The axes that a Shape node reads: named ones by their names, unknown ones by what the value follows."""
    value = node.inputs[0]
    assert value is not None
    follows = known.get(value, frozenset())
    if CONTENT not in follows:
        return follows
    if value.shape is None:
        return frozenset({CONTENT})
    sizes = value.shape[
        node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(value.shape))
    ]
    found: set[str] = set()
    for size in sizes:
        if isinstance(size, int):
            continue
        names = {name for name in (BATCH, LENGTH) if name in (size.value or "")}
        found |= names or {CONTENT}
    return frozenset(found)


def at_sizes(
    model: ir.Model, values: Sequence[ir.Value], lengths: Sequence[int]
) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """(batch, length, values) for both `BATCHES` and all these lengths, in their order.

    The values must not depend on content: the inputs are zeros.
    """
    if not values:
        return
    part = model.clone()
    graph = part.graph
    wanted = {value.name for value in values}
    found = {output.name: output for node in graph for output in node.outputs if output.name in wanted}
    graph.outputs.clear()
    graph.outputs.extend(found[value.name] for value in values)
    common.RemoveUnusedNodesPass()(part)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(part).SerializeToString(), options)
    names = {value.name for value in session.get_inputs()}
    for batch in BATCHES:
        for length in lengths:
            feeds = {
                value.name: np.zeros(_sizes(value, batch, length), _dtype(value))
                for value in graph.inputs
                if value.name in names
            }
            yield batch, length, session.run([value.name for value in values], feeds)


def _sizes(value: ir.Value, batch: int, length: int) -> list[int]:
    assert value.shape is not None
    sizes = {BATCH: batch, LENGTH: length}
    return [size if isinstance(size, int) else sizes[str(size.value)] for size in value.shape]


def _dtype(value: ir.Value) -> np.dtype:
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy())


def lengths_to_try(longest: int, entries: int) -> list[int]:
    """Longest first: all of 1..longest, or for a value of very many entries some 200 that are spread."""
    if entries <= MANY:
        return list(range(longest, 0, -1))
    some = np.linspace(1, longest, FEW).astype(int).tolist()
    return sorted({*range(1, min(longest, FEW) + 1), *some, longest - 1, longest}, reverse=True)
