"""Targets of Reshape as constants, where all sizes but one are known or kept."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.surgery import constant, dims, given, nodes_of, store


def constant_reshapes(model: ir.Model) -> int:
    """Reshape to a computed shape -> Reshape to a constant one (0: as before, -1: the rest); returns how
    many.

    The shapes are those that the exporter wrote down. Leaves alone what has more than one size that is
    neither known nor that of the same axis before.
    """
    graph, done = model.graph, 0
    for node in nodes_of(graph, "Reshape"):
        before, after = dims(given(node, 0)), dims(node.outputs[0])
        if constant(node.inputs[1]) is not None or before is None or after is None:
            continue
        target = [
            size if isinstance(size, int) else 0 if before[axis : axis + 1] == (size,) else -1
            for axis, size in enumerate(after)
        ]
        if target.count(-1) > 1 or any(size == 0 for size in (*before, *after)):
            continue
        node.replace_input_with(1, store(graph, "shape", np.array(target, np.int64)))
        node.attributes.pop("allowzero", None)
        done += 1
    common.RemoveUnusedNodesPass()(model)
    return done
