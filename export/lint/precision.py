"""Rules about the types that numbers are held in."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from export.lint.findings import Asked, Fault, Precision
from export.lint.graph import Graph, attribute, bytes_of_tensor
from export.lint.operators import type_name

_T = onnx.TensorProto
KNOWN = frozenset({
    _T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.INT32, _T.INT64, _T.BOOL, _T.INT8, _T.UINT8, _T.INT4, _T.DOUBLE,
    _T.FLOAT8E4M3FN, _T.FLOAT4E2M1,
})  # fmt: skip
"""What TensorRT has a type for; double has a rule of its own."""
PROMISES: dict[Precision, int] = {
    "fp32": _T.FLOAT, "fp16": _T.FLOAT16, "bf16": _T.BFLOAT16, "int8": _T.INT8, "fp8": _T.FLOAT8E4M3FN,
}  # fmt: skip
FLOATS = (_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE)
PRODUCTS = ("MatMul", "Gemm")
MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What a stored matrix may pass on its way to a product and still be the same numbers."""
BROKEN, WEAK = 0.5, 0.95
"""Shares by bytes below which a promise is broken, or weaker than it sounds."""


def float64(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No float64: TensorRT computes it in float32 and clamps what does not fit (onnx-tensorrt,
    operators.md).
    """
    for name, tensor in graph.initializers.items():
        if tensor.data_type == _T.DOUBLE:
            yield Fault(f"weight {name!r}", "is float64", "store it as float32")
    for node in graph.nodes:
        value = attribute(node, "value") if node.op_type in ("Constant", "ConstantOfShape") else None
        stored = value.data_type if isinstance(value, onnx.TensorProto) else 0
        if _T.DOUBLE in (stored, attribute(node, "to") if node.op_type == "Cast" else 0):
            yield Fault(graph.told(node), "makes float64", "compute in float32")


def element_type(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Weights and values have types that TensorRT has: int8, int4 and fp8 only as stored weights or zero
    points of DequantizeLinear and QuantizeLinear, uint8 not inside of a graph (onnx-tensorrt, operators.md).
    """
    quantized = {name for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")
                 for name in node.input}  # fmt: skip
    small = {_T.INT8, _T.UINT8, _T.INT4, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1}
    for name, tensor in graph.initializers.items():
        if tensor.data_type not in KNOWN or (tensor.data_type in small and name not in quantized):
            yield Fault(f"weight {name!r}",
                        f"is {type_name(tensor.data_type)}, which TensorRT does not compute with",
                        "store it as float32, float16, bfloat16, int32 or int64; 8 bits through "
                        "DequantizeLinear")  # fmt: skip
    for node in graph.nodes:
        to = attribute(node, "to") if node.op_type == "Cast" else None
        if to is not None and to not in KNOWN - small:
            yield Fault(graph.told(node), f"casts to {type_name(to)}, which TensorRT does not compute with",
                        "quantize with QuantizeLinear, or cast to another type")  # fmt: skip


def promised(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """The stored matrices, weights and Constant nodes alike, are of the promised type, by bytes: TensorRT 11
    takes the types of the file and builds a float32 engine of a float32 file without a word (migration guide
    10 to 11). Of floating types half is the least, and below 95% there is a warning; int8 and fp8 have to be
    there at all, below half there is a warning.
    """
    if asked.precision is None:
        return
    wanted, bytes_of = PROMISES[asked.precision], Counter[int]()
    for tensor in _matrices(graph).values():
        if tensor.data_type in (*FLOATS, *PROMISES.values()):
            bytes_of[tensor.data_type] += bytes_of_tensor(tensor)
    total = sum(bytes_of.values())
    share = bytes_of[wanted] / total if total else 0.0
    least, usual = (BROKEN, WEAK) if wanted in FLOATS else (0.0, BROKEN)
    broken = share < least or not bytes_of[wanted]
    if not total or not (broken or share < usual):
        return
    found = ", ".join(f"{type_name(each)} {count / total:.1%}" for each, count in bytes_of.most_common())
    yield Fault(graph.path.name,
                f"{asked.precision} is promised, but of the {total:,} bytes of its matrices are {found}",
                f"give the {asked.precision} graph: TensorRT takes the types of the file, not a flag",
                "error" if broken else "warning")  # fmt: skip


def precision_cast(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Where a type below float32 is promised, no matrix that is stored in half precision is cast up before
    its product, which then is one of float32 (a strongly typed network computes in the types of the file). A
    warning. The product that makes the scores is left out: item vectors are cast up for it on purpose.
    """
    if asked.precision in (None, "fp32"):
        return
    matrices, scoring = _matrices(graph), {id(node) for node in _scoring(graph)}
    for node in graph.nodes:
        if node.op_type not in PRODUCTS or id(node) in scoring:
            continue
        for name in node.input[:2]:
            source = _cast_up(graph, name, matrices)
            if source:
                stored = type_name(matrices[source].data_type)
                yield Fault(graph.told(node), f"reads {source!r}, stored in {stored}, cast to float32",
                            f"cast the other input to {stored} instead", "warning")  # fmt: skip


def _matrices(graph: Graph) -> dict[str, Any]:
    """Stored tensors of two axes and more by name: weights, and values of Constant nodes."""
    found = dict(graph.initializers)
    for node in graph.nodes:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            found[node.output[0]] = value
    return {name: tensor for name, tensor in found.items() if len(tensor.dims) >= 2}


def _cast_up(graph: Graph, name: str, matrices: Mapping[str, Any]) -> str | None:
    """The matrix in half precision that a value is, once it was cast to float32; None: it is none."""
    cast, passed = False, set[str]()
    while name not in matrices:
        node = graph.made_by.get(name)
        if node is None or node.op_type not in MOVES or name in passed:
            return None
        passed.add(name)
        cast |= node.op_type == "Cast" and attribute(node, "to") in (_T.FLOAT, _T.DOUBLE)
        name = node.input[0]
    return name if cast and matrices[name].data_type in (_T.FLOAT16, _T.BFLOAT16) else None


def _scoring(graph: Graph) -> Iterator[Any]:
    """The products whose results are ordered: nearest before a TopK."""
    waiting = [node.input[0] for node in graph.nodes if node.op_type == "TopK"]
    passed: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = graph.made_by.get(name)
        if node is None or name in passed:
            continue
        passed.add(name)
        if node.op_type in PRODUCTS:
            yield node
        else:
            waiting += node.input
