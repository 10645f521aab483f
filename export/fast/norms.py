"""Residual sum and norm in one vendor operator, which gives back the sum as well."""

import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.surgery import CONTRIB, constant, dims, given, insert, maker, nodes_of, replace

FUSED = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}
EPSILON = 1e-5
"""What the standard operators take where nothing is said; the vendor's take another."""


def skip_norms(model: ir.Model) -> int:
    """Norm(a + b) -> the vendor's norm of a and b, whose fourth output is the sum; returns how many.

    Fires on norms over the last axis of 3-D sums of two states of one shape. A norm that reads a sum which
    another norm reads already stays as it is.
    """
    done = 0
    for op_type, fused in FUSED.items():
        for node in nodes_of(model.graph, op_type):
            addition = _fusable(node)
            if addition is None:
                continue
            total, normed = addition.outputs[0], node.outputs[0]
            epsilon = node.attributes.get_float("epsilon", EPSILON)
            made = insert(
                addition,
                fused,
                [*addition.inputs, *node.inputs[1:]],
                {"epsilon": epsilon},
                domain=CONTRIB,
                outputs=4,
                like=normed,
            )
            made.outputs[3].shape, made.outputs[3].type = total.shape, ir.TensorType(ir.DataType.FLOAT)
            replace(normed, made.outputs[0])
            replace(total, made.outputs[3])
            done += 1
    common.RemoveUnusedNodesPass()(model)
    return done


def _fusable(node: ir.Node) -> ir.Node | None:
    """The Add in front of a norm, where the vendor's operator does the same."""
    addition = maker(node.inputs[0], "Add")
    if addition is None or set(node.attributes) - {"epsilon", "axis"} or len(node.outputs) > 1:
        return None
    if any(constant(value) is None for value in node.inputs[1:]) or given(node, 0).dtype != ir.DataType.FLOAT:
        return None
    shapes = [dims(value) for value in (*addition.inputs, node.outputs[0]) if value is not None]
    if None in shapes or len(set(shapes)) != 1 or len(shapes[0] or ()) != 3:
        return None
    return addition if node.attributes.get_int("axis", -1) in (-1, 2) else None
