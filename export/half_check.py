"""What a half-precision graph answers, also where no runtime at hand computes in its type.

Its float32 twin holds the same rounded weights and rounds whatever the half graph stores: each result of an
operator goes through the type and back. Inside of an operator it computes in float32, as matrix units
accumulate. What a kernel rounds within one operator (the weights of an Attention) is not seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from export.half import MOVES, TYPES
from export.onnx import save_onnx
from export.runtime import Artifact, open_session
from export.variants import CANONICAL, HalfKind
from recommender.errors import GateError

CHECKED = "in float32, every stored value rounded to {}; what happens within one operator is not seen"
REFRESHED_AGREEMENT = 0.9
"""Of the lists before and after rounding, below which a refreshed table does not suit the type at all."""


def rounded_in_float(half: ir.Model, kind: HalfKind) -> ir.Model:
    """The float32 twin of a graph that `export.half.to_half` has made; the given one is left as it is."""
    model, type_ = half.clone(), TYPES[kind]
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None and value.const_value.dtype == type_:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(model.graph):
        for value in node.outputs:
            if value.dtype != type_:
                continue
            if node.op_type in MOVES:
                value.type = ir.TensorType(ir.DataType.FLOAT)
            else:
                _round(model.graph, node, value, type_)
    return model


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, type_: ir.DataType) -> None:
    """Let everybody read a value as the type holds it, in float32."""
    narrow = node if node.op_type == "Cast" else ir.node("Cast", [value], {"to": int(type_)})
    wide = ir.node("Cast", [narrow.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    value.replace_all_uses_with(wide.outputs[0])
    wide.replace_input_with(0, narrow.outputs[0])
    graph.insert_after(node, [wide] if narrow is node else [narrow, wide])
    if narrow is not node:
        narrow.replace_input_with(0, value)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    narrow.outputs[0].type = ir.TensorType(type_)
    wide.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    narrow.outputs[0].shape = wide.outputs[0].shape = value.shape


def runs_on_cpu(path: Path) -> bool:
    """Whether onnxruntime has CPU kernels for a graph (of bfloat16 it has next to none)."""
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    try:
        open_session(path, 1, "cpu")
    except Exception as error:
        if isinstance(error.__cause__, NoKernel):
            return False
        raise
    return True


def open_rounded(
    folder: Path, entry: Mapping[str, Any], scratch: Path, *, threads: int | None, version: int | None = None
) -> Artifact:
    """An artifact that answers as the half variant with this entry would; `scratch` takes the twin."""
    path = scratch / f"{entry['name']}-rounded.onnx"
    save_onnx(rounded_in_float(ir.load(folder / entry["graph"]), entry["name"]), path)
    artifact = Artifact(folder, variant=CANONICAL, threads=threads, verify=False, version=version)
    artifact.graph = open_session(path, threads, "cpu")
    return artifact


def gate_agreement(found: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Raise GateError where a refreshed table does not suit a half type or few bits (NaN does not)."""
    if not found["recall"] >= REFRESHED_AGREEMENT:
        held = entry["table"]["bits"] if "table" in entry else entry["name"]
        raise GateError(
            f"lists from vectors rounded to {held} hold {found['recall']:.4f} of the exact "
            f"{found['depth']} best (must be >= {REFRESHED_AGREEMENT:g})",
            where=f"{entry['name']}, {found['users']} {found['histories']}",
            fix=f"export again without {entry['name']}: these vectors need more than its precision or range",
        )
