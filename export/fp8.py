"""Products of 8-bit floats (E4M3) in standard operators, for engines on Hopper and Ada GPUs.

Weights have a scale per output, inputs one whose range was measured on training histories: the largest
magnitude becomes 448, the largest number of the type. Zero points are 0.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes import common

from export.body import scoring_product
from export.fast.surgery import constant, given, insert, nodes_of, replace, store
from recommender.errors import StageError
from recommender.scoring import HistoryArrays

Float32 = NDArray[np.float32]
TYPE = ir.DataType.FLOAT8E4M3FN
LARGEST = 448.0
USERS_AT_ONCE = 32


def fp8_products(model: ir.Model, ranges: Mapping[str, float]) -> ir.Model:
    """The graph with every product of a stored matrix in E4M3, but the one with the item table.

    ranges: input of a product -> largest magnitude. The given graph is left as it is. Raises StageError where
    there is no such product.
    """
    made = model.clone()
    found = weighted(made)
    if not found:
        raise StageError(
            "no product of this graph has a matrix of weights", where="export.variants",
            fix="leave tensorrt-fp8 out",
        )  # fmt: skip
    inputs: dict[ir.Value, ir.Value] = {}
    for node in found:
        read = given(node, 0)
        if read not in inputs:
            step = np.array(max(ranges[str(read.name)], 1e-6) / LARGEST, np.float32)
            inputs[read] = _there_and_back(node, read, step)
        _rewrite(made.graph, node, inputs[read])
    common.RemoveUnusedNodesPass()(made)
    return made


def weighted(model: ir.Model) -> list[ir.Node]:
    """Products x W (+ bias) with a stored matrix, in the order of the graph."""
    last = scoring_product(model)
    found = []
    for node in [*nodes_of(model.graph, "MatMul"), *nodes_of(model.graph, "Gemm")]:
        weight = constant(node.inputs[1])
        plain = node.attributes.get_int("transA", 0) == 0 and all(
            node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta")
        )
        if node is not last and plain and weight is not None and weight.ndim == 2:
            found.append(node)
    return found


def input_ranges(model: ir.Model, histories: HistoryArrays, *, length: int, seen: int) -> dict[str, float]:
    """{input of a product: its largest magnitude} over these histories, padding left out."""
    part = model.clone()
    names = list(dict.fromkeys(str(given(node, 0).name) for node in weighted(part)))
    values = {value.name: value for node in part.graph for value in node.outputs}
    part.graph.outputs.clear()
    part.graph.outputs.extend(values[name] for name in names)
    common.RemoveUnusedNodesPass()(part)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(part).SerializeToString(), options)
    taken = {value.name for value in session.get_inputs()}
    items = histories.items[:, -length:]
    items = np.pad(items, ((0, 0), (length - items.shape[1], 0)))
    found = dict.fromkeys(names, 0.0)
    for start in range(0, len(items), USERS_AT_ONCE):
        rows = items[start : start + USERS_AT_ONCE]
        feeds = {"items": rows, "seen": np.zeros((len(rows), seen), np.int64)}
        answers = session.run(names, {name: array for name, array in feeds.items() if name in taken})
        for name, array in zip(names, answers, strict=True):
            real = array[rows != 0] if array.shape[:2] == rows.shape else array
            found[name] = max(found[name], float(np.abs(real).max(initial=0)))
    return found


def _there_and_back(node: ir.Node, read: ir.Value, step: Float32) -> ir.Value:
    """An input as it comes out of 8 bits."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    scale, zero = store(graph, "step", step), _zero(graph)
    narrow = insert(node, "QuantizeLinear", [read, scale, zero]).outputs[0]
    narrow.shape, narrow.type = read.shape, ir.TensorType(TYPE)
    return insert(node, "DequantizeLinear", [narrow, scale, zero], like=read).outputs[0]


def _zero(graph: ir.Graph) -> ir.Value:
    if "zero_e4m3" in graph.initializers:
        return graph.initializers["zero_e4m3"]
    return store(graph, "zero_e4m3", np.array(0, TYPE.numpy()))


def _rewrite(graph: ir.Graph, node: ir.Node, read: ir.Value) -> None:
    """Put a product with dequantized weights in the place of a node."""
    weight = constant(node.inputs[1])
    assert weight is not None
    matrix: Float32 = weight.T if node.attributes.get_int("transB", 0) else weight  # [in, out]
    scales = np.maximum(np.abs(matrix).max(axis=0) / LARGEST, 1e-12).astype(np.float32)
    numbers = store(graph, "e4m3", (matrix / scales).astype(TYPE.numpy()))
    wide = insert(node, "DequantizeLinear", [numbers, store(graph, "steps", scales)], {"axis": 1}).outputs[0]
    wide.shape, wide.type = ir.Shape(matrix.shape), ir.TensorType(ir.DataType.FLOAT)
    result = insert(node, "MatMul", [read, wide], like=node.outputs[0]).outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = insert(node, "Add", [result, node.inputs[2]], like=node.outputs[0]).outputs[0]
    replace(node.outputs[0], result)
