"""What the inspector of the stand-in for TensorRT tells of the layers of an engine."""

import json
from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from tests.fakes.tensorrt_names import BuilderFlag, LayerInformationFormat
from tests.fakes.tensorrt_steps import FAIL

if TYPE_CHECKING:
    from tests.fakes.tensorrt_engine import ICudaEngine


class EngineInspector:
    def __init__(self, engine: "ICudaEngine") -> None:
        self.engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        if "inspector" in FAIL:
            return "none"
        nodes = self.engine.model.graph.node
        if not self.engine.told["detailed"]:
            return json.dumps({"Layers": [node.name for node in nodes]})
        model = onnx.shape_inference.infer_shapes(self.engine.model)
        kinds = {each.name: each.data_type for each in model.graph.initializer}
        kinds |= {
            each.name: each.type.tensor_type.elem_type
            for each in (*model.graph.value_info, *model.graph.input)
        }
        made = {out: node for node in nodes for out in node.output}
        names = {1: "Float", 10: "Half", 16: "BFloat16", 3: "Int8", 17: "FP8", 7: "Int64"}

        def told_of(value: str) -> str:
            node = made.get(value)
            source = node.input[0] if node is not None and node.op_type == "DequantizeLinear" else value
            return names.get(kinds.get(source, 0), "N/A due to dynamic shapes")

        version = self.engine.version
        kind = {"MatMul": "gemm", "Gemm": "gemm", "Attention": "mha"}
        stored = {each.name: each for each in model.graph.initializer}
        skipping = BuilderFlag.SPARSE_WEIGHTS.name in self.engine.told["flags"]

        def tactic(node: onnx.NodeProto) -> str:
            if node.op_type != "MatMul" or "no tactics" in FAIL:
                return ""
            sparse = skipping and node.input[1] in stored and _is_sparse(stored[node.input[1]])
            return f"fake_{'sparse_' if sparse else ''}gemm"

        layers = [
            {
                "Name": node.name, "LayerType": kind.get(node.op_type, "kgen"), "TacticName": tactic(node),
                "Inputs": [{"Name": name, **_told(told_of(name), version)} for name in node.input if name],
            }
            for node in nodes
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "Bindings": []})


def _is_sparse(weight: onnx.TensorProto) -> bool:
    """[in, out] with two zeros among each four of its inputs."""
    array = numpy_helper.to_array(weight)
    return len(array) % 4 == 0 and bool(((array.T.reshape(-1, 4) == 0).sum(axis=1) >= 2).all())


def _told(kind: str, version: str) -> dict[str, str]:
    """A type as the inspector of a version tells it."""
    if int(version.split(".")[0]) < 11:
        return {"Format/Datatype": kind}
    return {"Datatype": kind, "Format": "Row-major linear"}
