"""For each rule a tiny model that breaks it and no other, with what lint is asked about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

NEWEST = {"tensorrt": (11, 0)}
"""Asked where an operator came after 10.12."""


class Case(NamedTuple):
    model: onnx.ModelProto
    asked: dict[str, Any] = {}  # noqa: RUF012  # options of lint
    spoil: Callable[[Path], None] | None = None  # done to the folder once the model is saved


def value(name: str, type_: int = T.FLOAT, shape: Any = ("batch", 8)) -> Any:
    return helper.make_tensor_value_info(name, type_, shape)


def weight(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def model(
    *nodes: Any, inputs: Any = None, outputs: Any = None, weights: Any = (), opset: int = 23, more: Any = ()
) -> onnx.ModelProto:
    """A model from x [batch, 8] to y, unless told otherwise."""
    graph = helper.make_graph(
        list(nodes), "tiny", inputs or [value("x")], outputs or [value("y", shape=None)], list(weights)
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in more)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(op_type: str, *inputs: str, out: Any = "y", **attributes: Any) -> Any:
    outputs = [out] if isinstance(out, str) else out
    return helper.make_node(op_type, list(inputs), outputs, name=f"the-{op_type}", **attributes)


RELU = node("Relu", "x")


def clean() -> onnx.ModelProto:
    """A product, a norm, a TopK: nothing to find."""
    rng = np.random.default_rng(0)
    return model(
        node("MatMul", "x", "w", out="h"),
        node("LayerNormalization", "h", "scale", out="n"),
        node("TopK", "n", "k", out=["scores", "items"], axis=1),
        outputs=[value("scores", shape=("batch", 3)), value("items", T.INT64, ("batch", 3))],
        weights=[
            weight("w", rng.normal(size=(8, 8)).astype(np.float32)),
            weight("scale", np.ones(8, np.float32)),
            weight("k", np.array([3])),
        ],
    )


def top_k(k: int, width: int, **attributes: Any) -> onnx.ModelProto:
    return model(
        node("TopK", "x", "k", out=["y", "rows"], **attributes),
        inputs=[value("x", shape=("batch", width))],
        weights=[weight("k", np.array([k]))],
    )


def attention(shape: Any = ("batch", 2, 4, 8), out: Any = "y", **attributes: Any) -> onnx.ModelProto:
    inputs = [value(name, shape=shape) for name in "qkv"]
    return model(node("Attention", *"qkv", out=out, **attributes), inputs=inputs)


def cached_attention() -> onnx.ModelProto:
    inputs = [value(name, shape=("batch", 2, 4, 8)) for name in ("q", "k", "v", "past_k", "past_v")]
    return model(
        node("Attention", "q", "k", "v", "", "past_k", "past_v", out=["y", "new_k", "new_v"]), inputs=inputs
    )


def quantized(zero: Any, *, weights: Any = (), more: Any = ()) -> onnx.ModelProto:
    """x through a pair of Q/DQ."""
    return model(
        *more,
        node("QuantizeLinear", "x", "scale", "zero", out="q"),
        node("DequantizeLinear", "q", "scale", "zero"),
        weights=[
            weight("scale", np.float32(0.1)),
            *([weight("zero", zero)] if zero is not None else weights),
        ],
    )


def one_sided_product() -> onnx.ModelProto:
    return model(
        node("DequantizeLinear", "w", "scale", out="d"),
        node("MatMul", "x", "d"),
        weights=[weight("scale", np.float32(0.1)), weight("w", np.ones((8, 8), np.int8))],
    )


def computed_k() -> onnx.ModelProto:
    return model(node("TopK", "x", "k", out=["y", "rows"]), inputs=[value("x"), value("k", T.INT64, (1,))])


def with_weight(array: Any) -> onnx.ModelProto:
    return model(node("MatMul", "x", "w"), weights=[weight("w", array)])


def halves(value_: float) -> onnx.ModelProto:
    return model(
        node("MatMul", "x", "w"),
        inputs=[value("x", T.FLOAT16)],
        outputs=[value("y", T.FLOAT16, None)],
        weights=[weight("w", np.full((8, 8), value_, np.float16))],
    )


def cast_up(stored: Any = None) -> onnx.ModelProto:
    """A product of float32 with a matrix that is stored in half precision."""
    return model(
        node("Cast", "w", out="c", to=T.FLOAT),
        node("MatMul", "x", "c"),
        weights=[weight("w", np.ones((8, 8), np.float16) if stored is None else stored)],
    )


def rotary_with_int32() -> onnx.ModelProto:
    inputs = [value("x", shape=("batch", 2, 4, 8)), value("at", T.INT32, ("batch", 4))]
    caches = [weight(name, np.ones((4, 4), np.float32)) for name in ("cos", "sin")]
    return model(node("RotaryEmbedding", "x", "cos", "sin", "at"), inputs=inputs, weights=caches)


def contradiction() -> onnx.ModelProto:
    return model(node("MatMul", "x", "w"), weights=[weight("w", np.ones((5, 5), np.float32))])


def outside_data() -> onnx.ModelProto:
    made = with_weight(np.ones((8, 8), np.float32))
    tensor = made.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "tiny.onnx.data", offset=0, length=256)
    tensor.ClearField("raw_data")
    return made


VIOLATIONS: dict[str, Callable[[], Case]] = {
    "inference": lambda: Case(contradiction()),
    "opset": lambda: Case(model(RELU, opset=14)),
    "domain": lambda: Case(
        model(
            helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft"),
            more=["com.microsoft"],
        )
    ),
    "operator": lambda: Case(
        model(
            node("BitwiseNot", "x"),
            inputs=[value("x", T.INT32)],
            outputs=[value("y", T.INT32, None)],
        )
    ),
    "parser-version": lambda: Case(
        model(node("RMSNormalization", "x", "s"), weights=[weight("s", np.ones(8, np.float32))])
    ),
    "operator-type": lambda: Case(
        model(
            node("CumSum", "x", "axis"),
            inputs=[value("x", T.INT64)],
            outputs=[value("y", T.INT64, None)],
            weights=[weight("axis", np.array(1))],
        )
    ),
    "data-dependent-shape": lambda: Case(model(node("NonZero", "x"), outputs=[value("y", T.INT64, None)])),
    "constant-input": lambda: Case(
        model(node("ReduceSum", "x", "axes"), inputs=[value("x"), value("axes", T.INT64, (1,))])
    ),
    "gather-nd": lambda: Case(model(node("GatherND", "x", "i"), weights=[weight("i", np.array([[0, 1]]))])),
    "is-nan": lambda: Case(
        model(
            node("IsNaN", "x", out="n"),
            node("Where", "n", "zero", "x"),
            weights=[weight("zero", np.float32(0))],
        )
    ),
    "top-k-limit": lambda: Case(top_k(3841, 9000)),
    "top-k-constant": lambda: Case(computed_k()),
    "top-k-sorted": lambda: Case(top_k(3, 8, sorted=0)),
    "top-k-axis": lambda: Case(top_k(3, 8, axis=0)),
    "attention-rank": lambda: Case(attention(("batch", 4, 16), q_num_heads=2, kv_num_heads=2), NEWEST),
    "attention-attribute": lambda: Case(attention(softmax_precision=T.FLOAT), NEWEST),
    "attention-cache": lambda: Case(cached_attention(), NEWEST),
    "layer-norm-output": lambda: Case(
        model(
            node("LayerNormalization", "x", "s", out=["y", "mean"]),
            weights=[weight("s", np.ones(8, np.float32))],
        )
    ),
    "rotary-position": lambda: Case(rotary_with_int32(), NEWEST),
    "scatter-reduction": lambda: Case(
        model(
            node("ScatterND", "x", "i", "x", reduction="add"),
            inputs=[value("x", shape=(4, 8))],
            weights=[weight("i", np.arange(4)[:, None])],
        )
    ),
    "named-axis": lambda: Case(model(RELU, inputs=[value("x", shape=(None, 8))])),
    "profile": lambda: Case(
        model(RELU, inputs=[value("x", shape=("batch", "length"))]), {"profiled": ["batch"]}
    ),
    "io-type": lambda: Case(
        model(node("Not", "x"), inputs=[value("x", T.BOOL)], outputs=[value("y", T.BOOL, None)])
    ),
    "float64": lambda: Case(
        model(
            node("Cast", "w", out="c", to=T.FLOAT), node("Add", "x", "c"), weights=[weight("w", np.ones(8))]
        )
    ),
    "element-type": lambda: Case(
        model(
            node("Cast", "w", out="c", to=T.FLOAT),
            node("Add", "x", "c"),
            weights=[weight("w", np.ones(8, np.int16))],
        )
    ),
    "precision": lambda: Case(with_weight(np.ones((8, 8), np.float32)), {"precision": "fp16"}),
    "precision-cast": lambda: Case(cast_up(), {"precision": "fp16"}),
    "quantized-type": lambda: Case(quantized(np.uint8(0))),
    "zero-point": lambda: Case(quantized(np.int8(3))),
    "quantized-product": lambda: Case(one_sided_product()),
    "external-data": lambda: Case(outside_data()),
    "half-range": lambda: Case(halves(np.inf)),
    "half-denormal": lambda: Case(halves(1e-6)),
}
"""Rule -> a model that breaks it."""
