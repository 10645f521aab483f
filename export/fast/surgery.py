"""Reading and writing single nodes: what the rewriting passes share."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.passes import STANDARD_DOMAINS

CONTRIB = "com.microsoft"
LAST = np.iinfo(np.int64).max
"""What exporters write for "to the end" in a Slice."""


def maker(value: ir.Value | None, op_type: str, *, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if it is of this type."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type:
        return None
    fits = node.domain in STANDARD_DOMAINS if domain == "" else node.domain == domain
    return node if fits else None


def nodes_of(graph: ir.Graph, op_type: str, *, domain: str = "") -> list[ir.Node]:
    """All nodes of one type, in their order; the graph may be changed while they are visited."""
    return [
        node
        for node in graph
        if node.op_type == op_type
        and (node.domain in STANDARD_DOMAINS if domain == "" else node.domain == domain)
    ]


def given(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator's definition requires."""
    value = node.inputs[index]
    assert value is not None
    return value


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, None for everything else."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def integers(value: ir.Value | None) -> list[int] | None:
    """The entries of a small integer initializer."""
    array = constant(value)
    if array is None or array.dtype.kind != "i":
        return None
    return [int(entry) for entry in array.reshape(-1)]


def dims(value: ir.Value) -> tuple[int | str, ...] | None:
    """The shape as ints and names of axes; None where rank or a size is not known."""
    if value.shape is None:
        return None
    sizes = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return None if any(size is None for size in sizes) else sizes  # type: ignore[return-value]


def store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; a number is put behind names that are taken."""
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(np.array(array, order="C"), name=free)
    value = ir.Value(
        name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    *,
    domain: str = "",
    outputs: int = 1,
    like: ir.Value | None = None,
) -> ir.Node:
    """A new node in front of another; `like` lends shape and type to its first output."""
    made = ir.node(op_type, inputs=inputs, attributes=attributes or {}, domain=domain, num_outputs=outputs)
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(before, made)
    if like is not None:
        made.outputs[0].shape = like.shape
        made.outputs[0].type = None if like.dtype is None else ir.TensorType(like.dtype)
    return made


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of `old`, the graph's outputs among them, read `new`."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}_before", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def slice_bounds(node: ir.Node) -> tuple[list[int], list[int], list[int]] | None:
    """Starts, ends and axes of a Slice whose bounds are constants and whose steps are 1."""
    starts, ends, axes = (integers(node.inputs[index]) for index in (1, 2, 3)) if len(node.inputs) > 3 else (
        None, None, None,
    )  # fmt: skip
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if starts is None or ends is None or axes is None or steps is None or set(steps) != {1}:
        return None
    return starts, ends, axes
