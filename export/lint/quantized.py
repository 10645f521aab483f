"""Rules about QuantizeLinear and DequantizeLinear."""

from collections.abc import Iterator
from typing import Any

import onnx

from export.lint.findings import Asked, Fault
from export.lint.graph import Graph, attribute
from export.lint.operators import type_name

_T = onnx.TensorProto
QUANTIZED = (_T.INT8, _T.INT4, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1)
SYMMETRIC = (
    'quantize symmetrically to int8: extra_options={"ActivationSymmetric": True, "WeightSymmetric": True}'
)


def quantized_type(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Quantized to int8, fp8, int4 or fp4; uint8, which QuantizeLinear takes without a zero point, and int32
    biases are not among them (onnx-tensorrt, operators.md).
    """
    for node in _quantizers(graph):
        given = _type(graph, node)
        if given and given not in QUANTIZED:
            yield Fault(graph.told(node), f"quantizes to {type_name(given)}, which TensorRT does not read",
                        SYMMETRIC + ", QuantizeBias=False")  # fmt: skip


def zero_point(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Zero points are constants and 0 (onnx-tensorrt, operators.md)."""
    for node in _quantizers(graph):
        name = next(iter(node.input[2:3]), "")
        if not name or (name in graph.initializers and not graph.is_there(name)):
            continue  # missing bytes have a rule of their own
        values = graph.constant(name)
        if values is None:
            yield Fault(graph.told(node), f"its zero point ({name}) is computed", SYMMETRIC)
        elif (off := values.astype("float32")).any():
            first = off[off != 0].flat[0]
            yield Fault(graph.told(node), f"its zero point ({name}) is {first:g}, and has to be 0", SYMMETRIC)


def quantized_product(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """A MatMul or Gemm has Q/DQ at both factors or at none: with one it runs in floating point, and the Q/DQ
    only cost time (TensorRT, explicit quantization). A warning.
    """
    for node in graph.nodes:
        if node.op_type in ("MatMul", "Gemm") and node.domain in ("", "ai.onnx"):
            sides = [_is_dequantized(graph, name) for name in node.input[:2]]
            if sides.count(True) == 1:
                yield Fault(graph.told(node), f"only {node.input[sides.index(True)]!r} of it is quantized",
                            "quantize both, or neither", "warning")  # fmt: skip


def _is_dequantized(graph: Graph, name: str) -> bool:
    node = graph.made_by.get(name)
    while node is not None and node.op_type in ("Transpose", "Reshape", "Identity"):
        node = graph.made_by.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _quantizers(graph: Graph) -> Iterator[Any]:
    pair = ("QuantizeLinear", "DequantizeLinear")
    return (node for node in graph.nodes if node.op_type in pair and node.domain in ("", "ai.onnx"))


def _type(graph: Graph, node: Any) -> int:
    """The type that a Q/DQ quantizes to; 0 where it is not known."""
    if node.op_type == "DequantizeLinear":
        return graph.type_of(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        return graph.type_of(node.input[2])
    return int(attribute(node, "output_dtype", 0)) or int(_T.UINT8)
