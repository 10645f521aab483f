"""The attention mask, built once per call as a float that is added to the scores.

The runtime turns a boolean mask into such a float in each attention anew.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.evaluate import CONTENT, at_all_sizes, dependence
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
    for batch, length, grids in at_all_sizes(model, [given(node, 1) for node in found], max_length):
        wanted = np.stack(np.meshgrid(range(batch), range(length), indexing="ij"), axis=-1)
        for index, grid in enumerate(grids):
            identity[index] &= np.array_equal(grid, wanted[:, None, None])
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

    `And` has to be read either by attentions as their mask (directly, or its last row), or by a Where that
    makes the float mask itself.
    """
    done = 0
    for node in nodes_of(model.graph, "And"):
        parts = _table_and_padding(node)
        if parts is None:
            continue
        table, padding = parts
        mask, readers = node.outputs[0], list(node.outputs[0].consumers())
        wheres = [reader for reader in readers if _is_float_mask(reader, mask)]
        if wheres and len(wheres) == len(readers):
            for where in wheres:
                yes, no = (float(constant(where.inputs[i]).reshape(-1)[0]) for i in (1, 2))  # type: ignore[union-attr]
                _float_mask(where, where.outputs[0], table, padding, yes, no)
            done += len(wheres)
        elif readers and all(_masks_attention(reader, mask) for reader in readers):
            _float_mask(node, mask, table, padding, 0.0, MASKED)
            done += 1
    common.RemoveUnusedNodesPass()(model)
    return done


def _table_and_padding(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The cut of a constant table that an And reads, and its other input."""
    for one, other in ((0, 1), (1, 0)):
        cut = maker(node.inputs[one], "Slice")
        table = None if cut is None else constant(cut.inputs[0])
        if cut is not None and table is not None and table.dtype == np.bool_:
            return cut, given(node, other)
    return None


def _is_float_mask(node: ir.Node, mask: ir.Value) -> bool:
    """Where(mask, one number, another)."""
    if node.op_type != "Where" or node.inputs[0] is not mask:
        return False
    numbers = [constant(node.inputs[index]) for index in (1, 2)]
    return all(number is not None and number.size == 1 and number.dtype == np.float32 for number in numbers)


def _masks_attention(node: ir.Node, mask: ir.Value) -> bool:
    if node.op_type == "Attention":
        return [index for index, value in enumerate(node.inputs) if value is mask] == [3]
    if node.op_type != "Slice" or node.inputs[0] is not mask:
        return False
    part = node.outputs[0]
    return all(_masks_attention(user, part) and user.op_type == "Attention" for user in part.consumers())


def _float_mask(
    before: ir.Node, old: ir.Value, cut: ir.Node, padding: ir.Value, yes: float, no: float
) -> None:
    """Where(padding, the table as floats, no) in the place of `old`."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    table = np.where(constant(cut.inputs[0]), np.float32(yes), np.float32(no))
    floats = insert(before, "Slice", [store(graph, "mask", table), *cut.inputs[1:]], like=cut.outputs[0])
    floats.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    masked = store(graph, "masked", np.array(no, np.float32))
    turned, inverted = _not_inside(padding, before)
    order = [turned, masked, floats.outputs[0]] if inverted else [turned, floats.outputs[0], masked]
    made = insert(before, "Where", order, like=old)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(old, made.outputs[0])
    for reader in made.outputs[0].consumers():
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
