"""The canonical graph with weights and activations in half precision, for runtimes that compute in it.

Same inputs, outputs and operators, opset 23, plain casts: a strongly typed network. In float32 stay the
norms, the angles of rotary embeddings, the softmax inside of Attention (its own attribute), functions that
may leave the range (Pow, Exp, ReduceMean ...), and the scores with their TopK. The item table is stored in
half precision and cast for the last product. Products of dequantized integers have their scales in half
precision too, so that nothing stands between a DequantizeLinear and its product.

`onnxruntime.transformers.float16` (1.32) does not do it: it knows no bfloat16, and what it makes of these
graphs with norms left in float32 is not sorted, which the checker refuses.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.body import scoring_product
from export.fast.surgery import insert
from export.passes import STANDARD_DOMAINS
from export.variants import HalfKind
from recommender.errors import StageError

TYPES: dict[HalfKind, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
NORMS = {"RMSNormalization", "LayerNormalization"}
MOVES = {
    "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that compute nothing."""
PRODUCTS = {"Attention", "Gemm", "MatMul", "QuantizeLinear", "RotaryEmbedding"}
SIMPLE = {"Add", "Gelu", "Mul", "Neg", "Relu", "Sigmoid", "Sub", "Tanh"}
UNTYPED = {"Cast", "IsNaN", "Shape", "Size"}
LOWEST = -1e4
"""Of an additive mask: far below any score, and -inf would leave padded queries without a key."""


def to_half(canonical: ir.Model, kind: HalfKind) -> ir.Model:
    """The graph with its stream of activations in half precision; the given one is left as it is.

    The stream begins where vectors are looked up; what is computed from positions and masks stays in float32
    until it meets the stream. Raises StageError for graphs with subgraphs, values of unknown type, and
    weights beyond the range of `kind`.
    """
    for node in canonical.graph.all_nodes():
        if node.domain not in STANDARD_DOMAINS or node.graph is not canonical.graph:
            name = ".".join(part for part in (node.domain, node.op_type) if part)
            raise _refusal(kind, f"{name} is a vendor's operator, or stands in a graph within the graph")
    model = canonical.clone()
    common.ShapeInferencePass()(model)
    cut = _Halves(model, TYPES[kind], kind)
    for node in list(model.graph):
        cut.visit(node)
    common.RemoveUnusedNodesPass()(model)
    return model


class _Halves:
    """Walks through a graph in its order, and remembers which values are in half precision."""

    def __init__(self, model: ir.Model, type_: ir.DataType, kind: HalfKind) -> None:
        self.graph, self.type, self.kind = model.graph, type_, kind
        self.last = scoring_product(model)
        self.stream: set[ir.Value] = set()  # depends on vectors that were looked up
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.weights: dict[ir.Value, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Settle the types of one node, all before it being settled."""
        floats = self._floats(node)
        if node is self.last:
            self._cast_inputs(node, floats, ir.DataType.FLOAT)
            table = node.inputs[1]
            assert table is not None
            node.replace_input_with(1, self._cast(self._weight(table), ir.DataType.FLOAT, node))
            return
        if node.op_type == "DequantizeLinear":  # reads integers; its scale says what comes out
            self.stream.update(node.outputs)
            self._halve(node, floats)
            return
        flowing = [value for value in floats.values() if value in self.stream]
        looks_up = node.op_type in ("Gather", "GatherND", "Slice") and _is_matrix(node.inputs[0])
        if flowing or looks_up:
            self.stream.update(node.outputs)
        if node.op_type in UNTYPED or not (flowing or looks_up):
            return
        halved = any(value.dtype == self.type for value in flowing)
        if looks_up or node.op_type in PRODUCTS or (node.op_type in MOVES | SIMPLE and halved):
            self._halve(node, floats)
        else:
            self._cast_inputs(node, floats, ir.DataType.FLOAT)
            if node.op_type in NORMS:
                self._cast_output(node)

    def _floats(self, node: ir.Node) -> dict[int, ir.Value]:
        """The inputs of a node that are real numbers, by place."""
        given = {place: value for place, value in enumerate(node.inputs) if value is not None}
        unknown = [value.name for value in given.values() if value.dtype is None]
        if unknown:
            raise _refusal(self.kind, f"the type of {', '.join(map(str, unknown))} is not known")
        return {p: value for p, value in given.items() if value.dtype in (ir.DataType.FLOAT, self.type)}

    def _halve(self, node: ir.Node, floats: dict[int, ir.Value]) -> None:
        if node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(ir.DataType.FLOAT))
            if 3 in floats:
                floats[3] = self._bounded(floats[3], node)
                node.replace_input_with(3, floats[3])
        self._cast_inputs(node, floats, self.type)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT or value.dtype is None:
                value.type = ir.TensorType(self.type)

    def _cast_inputs(self, node: ir.Node, floats: dict[int, ir.Value], wanted: ir.DataType) -> None:
        for place, value in floats.items():
            if value.is_initializer() and wanted == self.type:
                node.replace_input_with(place, self._weight(value))
            elif value.dtype != wanted:
                node.replace_input_with(place, self._cast(value, wanted, node))

    def _cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        if (value, wanted) not in self.casts:
            made = insert(before, "Cast", [value], {"to": int(wanted)})
            made.outputs[0].shape, made.outputs[0].type = value.shape, ir.TensorType(wanted)
            self.casts[value, wanted] = made.outputs[0]
            if value in self.stream:
                self.stream.add(made.outputs[0])
        return self.casts[value, wanted]

    def _cast_output(self, node: ir.Node) -> None:
        """Let everybody read the result of a node in half precision."""
        result = node.outputs[0]
        made = ir.node("Cast", inputs=[result], attributes={"to": int(self.type)})
        self.graph.insert_after(node, made)
        half = made.outputs[0]
        half.shape, half.type = result.shape, ir.TensorType(self.type)
        result.replace_all_uses_with(half)
        made.replace_input_with(0, result)
        self.stream.add(half)

    def _bounded(self, mask: ir.Value, before: ir.Node) -> ir.Value:
        """An additive mask whose entries half precision can hold."""
        lowest = ir.Value(name=f"{mask.name}_lowest", const_value=ir.tensor(np.array(LOWEST, np.float32)))
        lowest.type, lowest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        if lowest.name not in self.graph.initializers:
            self.graph.register_initializer(lowest)
        lowest = self.graph.initializers[str(lowest.name)]
        return insert(before, "Clip", [mask, lowest], like=mask).outputs[0]

    def _weight(self, value: ir.Value) -> ir.Value:
        """An initializer in half precision."""
        if value not in self.weights:
            assert value.const_value is not None
            array = np.asarray(value.const_value.numpy())
            with np.errstate(over="ignore"):
                rounded = array.astype(self.type.numpy())
            lost = np.isfinite(array) & ~np.isfinite(rounded.astype(np.float32))
            if lost.any():
                raise _refusal(
                    self.kind,
                    f"{value.name} holds {array[lost].flat[0]:g}, which is beyond the range of {self.kind}",
                )
            half = ir.Value(name=f"{value.name}_{self.kind}", const_value=_tensor(rounded, self.type))
            half.type, half.shape = ir.TensorType(self.type), value.shape
            self.graph.register_initializer(half)
            self.weights[value] = half
        return self.weights[value]

    def _refusal(self, what: str) -> StageError:
        other = "bf16" if self.kind == "fp16" else "fp16"
        return StageError(
            f"this graph cannot be written in {self.kind}: {what}", where="export.variants",
            fix=f"leave {self.kind} out, or try {other}",
        )  # fmt: skip


def _refusal(kind: HalfKind, what: str) -> StageError:
    other = "bf16" if kind == "fp16" else "fp16"
    return StageError(
        f"this graph cannot be written in {kind}: {what}",
        where="export.variants",
        fix=f"leave {kind} out, or try {other}",
    )


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether a value is a stored float table, a row per item or position."""
    stored = value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT
    return stored and value is not None and value.shape is not None and len(value.shape) == 2


def _tensor(array: "np.ndarray[Any, Any]", type_: ir.DataType) -> Any:
    return ir.Tensor(np.array(array, order="C"), dtype=type_)  # which keeps scalars scalars
