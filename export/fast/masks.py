"""The attention mask, built once per call as a float that is added to the scores.

The runtime turns a boolean mask into such a float in each attention anew.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.evaluate import CONTENT, at_sizes, dependence, lengths_to_try
from export.fast.surgery import constant, dims, given, insert, maker, nodes_of, replace, store

MASKED = float(np.finfo(np.float32).min)
"""What the runtime itself writes for False. Finite: a user without any real item gets what the boolean mask
gave, and never NaN."""


def plain_padding(model: ir.Model, max_length: int) -> int:
    """GatherND(real [B, L], grid of all (b, l)) -> Unsqueeze(real); returns how many.

    Decoders look up the padding mask at every pair of batch and position. The grid is tried at every length.
    """
    graph = model.graph
    follows = dependence(graph)
    found = []
    for node in nodes_of(graph, "GatherND"):
        data, grid = given(node, 0), given(node, 1)
        sizes_only = CONTENT not in follows.get(grid, frozenset())
        if sizes_only and "batch_dims" not in node.attributes and len(dims(data) or ()) == 2:
            found.append(node)
    if not found:
        return 0
    identity = [True] * len(found)
    lengths = lengths_to_try(max_length, max_length)
    for batch, length, arrays in at_sizes(model, [given(node, 1) for node in found], lengths):
        wanted = np.stack(np.meshgrid(range(batch), range(length), indexing="ij"), axis=-1)[:, None, None]
        for index, array in enumerate(arrays):
            identity[index] &= np.array_equal(array, wanted)
    done = [node for node, same in zip(found, identity, strict=True) if same]
    for node in done:
        axes = store(graph, "axes", np.array([1, 2], np.int64))
        real = _without_casts(given(node, 0))
        made = insert(node, "Unsqueeze", [real, axes], like=node.outputs[0])
        replace(node.outputs[0], made.outputs[0])
    common.RemoveUnusedNodesPass()(model)
    return len(done)


def _without_casts(value: ir.Value) -> ir.Value:
    """A boolean that went through integers and back."""
    outer = maker(value, "Cast")
    inner = maker(outer.inputs[0], "Cast") if outer is not None else None
    if outer is None or inner is None or value.dtype != ir.DataType.BOOL:
        return value
    start = given(inner, 0)
    whole = given(outer, 0).dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return start if start.dtype == ir.DataType.BOOL and whole else value


def add_masks(model: ir.Model) -> int:
    """And(table, padding) -> one float mask, 0 or a large negative number; returns how many.

    `And` has to be read either by attentions as their mask (directly, or its last row), or by Wheres that
    make the float masks themselves.
    """
    done = 0
    for node in nodes_of(model.graph, "And"):
        parts = _table_and_padding(node)
        if parts is None:
            continue
        mask, readers = node.outputs[0], list(node.outputs[0].consumers())
        numbers = [_numbers(reader, mask) for reader in readers]
        if readers and None not in numbers:
            for reader, pair in zip(readers, numbers, strict=True):
                assert pair is not None
                _float_mask(reader, reader.outputs[0], parts, *pair)
            done += len(readers)
        elif readers and all(_masks_attention(reader, mask) for reader in readers):
            _float_mask(node, mask, parts, 0.0, MASKED)
            done += 1
    common.RemoveUnusedNodesPass()(model)
    return done


class _Parts(NamedTuple):
    """What an And joins."""

    cut: ir.Node  # Slice of `table`
    table: np.ndarray  # bool
    padding: ir.Value


def _table_and_padding(node: ir.Node) -> _Parts | None:
    for one, other in ((0, 1), (1, 0)):
        cut = maker(node.inputs[one], "Slice")
        table = None if cut is None else constant(cut.inputs[0])
        if cut is not None and table is not None and table.dtype == np.bool_:
            return _Parts(cut, table, given(node, other))
    return None


def _numbers(node: ir.Node, mask: ir.Value) -> tuple[float, float] | None:
    """The numbers of Where(mask, one number, another)."""
    if node.op_type != "Where" or node.inputs[0] is not mask:
        return None
    yes, no = (constant(node.inputs[index]) for index in (1, 2))
    if yes is None or no is None or yes.size != 1 or no.size != 1 or yes.dtype != np.float32:
        return None
    return float(yes.reshape(())), float(no.reshape(()))


def _masks_attention(node: ir.Node, mask: ir.Value) -> bool:
    if node.op_type == "Attention":
        return [index for index, value in enumerate(node.inputs) if value is mask] == [3]
    if node.op_type != "Slice" or node.inputs[0] is not mask:
        return False
    part = node.outputs[0]
    return all(user.op_type == "Attention" and _masks_attention(user, part) for user in part.consumers())


def _float_mask(before: ir.Node, old: ir.Value, parts: _Parts, yes: float, no: float) -> None:
    """Where(padding, the table as floats, no) in the place of `old`."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    floats = store(graph, "mask", np.where(parts.table, np.float32(yes), np.float32(no)))
    cut = insert(before, "Slice", [floats, *parts.cut.inputs[1:]]).outputs[0]
    cut.shape, cut.type = parts.cut.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
    masked = store(graph, "masked", np.array(no, np.float32))
    padding, inverted = _not_inside(parts.padding, before)
    made = insert(before, "Where", [padding, *((masked, cut) if inverted else (cut, masked))]).outputs[0]
    made.shape, made.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
    replace(old, made)
    for reader in made.consumers():
        if reader.op_type == "Slice":
            reader.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)


def _not_inside(padding: ir.Value, before: ir.Node) -> tuple[ir.Value, bool]:
    """Unsqueeze(Not(x)) -> Unsqueeze(x) and True: a Where can choose the other way round."""
    widened = maker(padding, "Unsqueeze")
    inverse = maker(widened.inputs[0], "Not") if widened is not None else None
    if widened is None or inverse is None:
        return padding, False
    made = insert(before, "Unsqueeze", [inverse.inputs[0], widened.inputs[1]], like=padding)
    return made.outputs[0], True
