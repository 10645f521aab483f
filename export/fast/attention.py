"""Attention on [B, T, heads * d]: the operator splits the heads itself, so nothing is transposed."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.surgery import (
    CONTRIB,
    dims,
    given,
    insert,
    integers,
    maker,
    nodes_of,
    replace,
    store,
)

SWAP = (0, 2, 1, 3)


@dataclass
class _Heads:
    """States that were split into heads, and what happened to the heads since."""

    joined: ir.Value  # [B, T, heads * d]
    heads: int
    width: int
    steps: list[ir.Node] = field(default_factory=list)  # rotary embeddings and norms, first to last


def join_heads(model: ir.Model) -> int:
    """Attention between transposes -> Attention on 3-D inputs; returns how many.

    Query, key and value must each be a Reshape to heads and a Transpose, with nothing but rotary embeddings
    and norms of single heads in between; keys and values that are repeated for groups of queries are read
    once (`kv_num_heads`). The output must be transposed back and joined.
    """
    graph, done = model.graph, 0
    for node in nodes_of(graph, "Attention"):
        if len(node.inputs) > 4 or len(node.outputs) > 1 or "q_num_heads" in node.attributes:
            continue
        end = _joined_output(node.outputs[0])
        parts = [_split(given(node, index)) for index in range(3)]
        if end is None or None in parts:
            continue
        query, key, value = (part for part in parts if part is not None)
        if key.heads != value.heads or query.heads % key.heads:
            continue
        _write(graph, node, (query, key, value), end)
        done += 1
    common.RemoveUnusedNodesPass()(model)
    return done


def _split(value: ir.Value) -> _Heads | None:
    """Walk from [B, heads, T, d] back to [B, T, heads * d]."""
    repeated = _unrepeated(value)
    if repeated is not None:
        value = repeated
    steps: list[ir.Node] = []
    swapped = False
    while True:
        node = value.producer()
        if node is None:
            return None
        if _is_swap(node) and not swapped:
            swapped = True
        elif node.op_type == "Reshape" and swapped:
            return _from_reshape(node, steps[::-1])
        elif (node.op_type == "RotaryEmbedding" and not swapped) or _is_head_norm(node):
            steps.append(node)
        else:
            return None
        value = given(node, 0)


def _is_swap(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == SWAP


def _is_head_norm(node: ir.Node) -> bool:
    """A norm over the last axis; it does not mind where the heads stand."""
    shape = dims(given(node, 0)) if node.op_type in ("RMSNormalization", "LayerNormalization") else None
    return shape is not None and len(shape) == 4 and node.attributes.get_int("axis", -1) in (-1, 3)


def _from_reshape(node: ir.Node, steps: list[ir.Node]) -> _Heads | None:
    """Reshape [B, T, heads * d] -> [B, T, heads, d]."""
    source, view = given(node, 0), node.outputs[0]
    before, after = dims(source), dims(view)
    if before is None or after is None or len(before) != 3 or len(after) != 4:
        return None
    heads, width = after[2], after[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    fits = before[:2] == after[:2] and before[2] == heads * width
    return _Heads(source, heads, width, steps) if fits else None


def _unrepeated(value: ir.Value) -> ir.Value | None:
    """[B, g, T, d] of Reshape(Expand(Unsqueeze(x, 2), [B, g, n, T, d])) -> [B, g * n, T, d]."""
    joined = maker(value, "Reshape")
    grown = maker(joined.inputs[0], "Expand") if joined is not None else None
    widened = maker(grown.inputs[0], "Unsqueeze") if grown is not None else None
    if grown is None or widened is None or integers(widened.inputs[1]) != [2]:
        return None
    source = given(widened, 0)
    few, five, many = dims(source), dims(grown.outputs[0]), dims(value)
    if few is None or five is None or many is None or (len(few), len(five), len(many)) != (4, 5, 4):
        return None
    kept = five[:2] == few[:2] and five[3:] == few[2:] and (many[0], *many[2:]) == (few[0], *few[2:])
    groups, times = few[1], five[2]
    whole = isinstance(groups, int) and isinstance(times, int) and many[1] == groups * times
    return source if kept and whole else None


class _End(NamedTuple):
    """Where the heads are joined again behind an attention."""

    node: ir.Node  # the Reshape
    shape: ir.Shape  # [B, T, heads * d]


def _joined_output(value: ir.Value) -> _End | None:
    """Walk from the attention's output to the Reshape that joins its heads.

    It makes [B, T, heads * d] or, for what follows a Gemm, [B * T, heads * d]; a Reshape to the same shape is
    passed over.
    """
    shape = dims(value)
    if shape is None or len(shape) != 4:
        return None
    batch, heads, length, width = shape
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    swapped = False
    while True:
        users = list(value.consumers())
        if len(users) != 1 or value.is_graph_output():
            return None
        node, sizes = users[0], dims(users[0].outputs[0])
        if _is_swap(node) and not swapped:
            swapped = True
        elif node.op_type == "Reshape" and swapped and sizes is not None and len(sizes) < 4:
            flat = integers(node.inputs[1]) == [-1, heads * width]
            fits = flat or sizes == (batch, length, heads * width)
            return _End(node, ir.Shape([batch, length, heads * width])) if fits else None
        elif node.op_type != "Reshape" or sizes is None or sizes != dims(value):
            return None
        value = node.outputs[0]


def _write(graph: ir.Graph, node: ir.Node, parts: tuple[_Heads, _Heads, _Heads], end: _End) -> None:
    query, key, _ = parts
    states: list[ir.Value | None] = [_redo(graph, part, node) for part in parts]
    attributes: dict[str, int | float] = {"q_num_heads": query.heads, "kv_num_heads": key.heads}
    attributes |= {name: attribute.value for name, attribute in node.attributes.items()}
    made = insert(node, "Attention", [*states, *node.inputs[3:]], attributes).outputs[0]
    made.shape, made.type = end.shape, ir.TensorType(ir.DataType.FLOAT)
    if len(end.node.outputs[0].shape or ()) == 3:
        replace(end.node.outputs[0], made)
    else:
        end.node.replace_input_with(0, made)


def _redo(graph: ir.Graph, part: _Heads, before: ir.Node) -> ir.Value:
    """The steps between split and attention again, on joined heads where the operator can."""
    value = part.joined
    for step in part.steps:
        attributes = {name: attribute.value for name, attribute in step.attributes.items()}
        if step.op_type != "RotaryEmbedding":
            value = _norm_heads(graph, part, step, value, before)
            continue
        if step.domain != CONTRIB:
            attributes["num_heads"] = part.heads
        inputs = [value, *step.inputs[1:]]
        value = insert(before, step.op_type, inputs, attributes, domain=step.domain, like=value).outputs[0]
    return value


def _norm_heads(graph: ir.Graph, part: _Heads, step: ir.Node, value: ir.Value, before: ir.Node) -> ir.Value:
    """A norm of single heads between two Reshapes, which copy nothing."""
    attributes = {name: attribute.value for name, attribute in step.attributes.items()} | {"axis": -1}
    view = _reshape(graph, before, value, [0, 0, part.heads, part.width])
    normed = insert(before, step.op_type, [view, *step.inputs[1:]], attributes)
    normed.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    joined = _reshape(graph, before, normed.outputs[0], [0, 0, part.heads * part.width])
    joined.shape = part.joined.shape
    return joined


def _reshape(graph: ir.Graph, before: ir.Node, value: ir.Value, target: list[int]) -> ir.Value:
    sizes = store(graph, "heads", np.array(target, np.int64))
    made = insert(before, "Reshape", [value, sizes]).outputs[0]
    made.type = ir.TensorType(ir.DataType.FLOAT)
    return made
