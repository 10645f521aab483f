"""One wide product that is cut into parts -> a product for each part.

Exporters keep what a model fuses (query, key and value; gate and up). On CPUs the copies that a cut makes
cost more than the wider product saves.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.surgery import constant, dims, given, insert, maker, nodes_of, replace, slice_bounds, store


class _Part(NamedTuple):
    """One cut of the columns of a product."""

    value: ir.Value
    first: int
    end: int


def split_products(model: ir.Model) -> int:
    """Split or Slice of the columns of x W (+ b) -> x with columns of W (and b); returns the products cut.

    Fires where W and b are constants and all readers of the product are such cuts, without overlap.
    """
    done = 0
    for node in nodes_of(model.graph, "MatMul"):
        weight = constant(node.inputs[1])
        if weight is None or weight.ndim != 2:
            continue
        result, bias = _biased(node)
        parts = _parts(result, weight.shape[1])
        if not parts:
            continue
        for part in parts:
            _write(node, weight, bias, part)
        done += 1
    common.RemoveUnusedNodesPass()(model)
    return done


def _biased(node: ir.Node) -> tuple[ir.Value, np.ndarray | None]:
    """The product with its bias, where nothing else reads the product."""
    result = node.outputs[0]
    users = list(result.consumers())
    if len(users) == 1 and users[0].op_type == "Add" and maker(users[0].outputs[0], "Add"):
        addition = users[0]
        other = addition.inputs[1] if addition.inputs[0] is result else addition.inputs[0]
        bias = constant(other)
        if bias is not None and bias.ndim == 1:
            return addition.outputs[0], bias
    return result, None


def _parts(result: ir.Value, width: int) -> list[_Part]:
    """The cuts of a product [B, T, width]; none where anything else reads it, or columns are read twice."""
    shape = dims(result)
    users = list(result.consumers())
    if shape is None or len(shape) != 3 or result.is_graph_output() or not users:
        return []
    parts: list[_Part] = []
    for user in users:
        found = _of_split(user) if user.op_type == "Split" else _of_slice(user, width)
        if not found:
            return []
        parts += found
    parts.sort(key=lambda part: part.first)
    apart = all(one.end <= other.first for one, other in pairwise(parts))
    return parts if apart and parts[-1].end <= width and len(parts) > 1 else []


def _of_split(node: ir.Node) -> list[_Part]:
    """All outputs of a Split of the last axis; their widths are those that the exporter wrote down."""
    if node.attributes.get_int("axis", 0) not in (-1, 2):
        return []
    parts, first = [], 0
    for value in node.outputs:
        shape = dims(value)
        if shape is None or not isinstance(shape[-1], int):
            return []
        parts.append(_Part(value, first, first + shape[-1]))
        first += shape[-1]
    return parts


def _of_slice(node: ir.Node, width: int) -> list[_Part]:
    """A Slice of the last axis with constant bounds."""
    bounds = slice_bounds(node) if node.op_type == "Slice" else None
    if bounds is None or bounds[2] not in ([-1], [2]) or given(node, 0) in node.inputs[1:]:
        return []
    first, end, _ = slice(bounds[0][0], bounds[1][0]).indices(width)
    return [_Part(node.outputs[0], first, end)] if first < end else []


def _write(node: ir.Node, weight: np.ndarray, bias: np.ndarray | None, part: _Part) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    columns = store(graph, "columns", weight[:, part.first : part.end])
    made = insert(node, "MatMul", [node.inputs[0], columns], like=part.value)
    if bias is not None:
        added = store(graph, "bias", bias[part.first : part.end])
        made = insert(node, "Add", [made.outputs[0], added], like=part.value)
    replace(part.value, made.outputs[0])
