"""A body with 8-bit weights and activations that are quantized on the fly (onnxruntime, CPU).

The scale of an activation is that of the whole tensor, so a user's list depends on who shares the call. That
is why this body is served in calls of a stated size, and its quality is measured in calls of that size.
"""

import logging
import warnings
from pathlib import Path

import onnx
from onnx import TensorProto

from recommender.errors import StageError


def quantize_body(body: Path, out: Path) -> int:
    """Write the body with every product with a weight matrix in int8 (a scale per column); returns how many.

    Weights use 7 of the 8 bits, so that a machine without VNNI computes what the quality was measured with.

    Raises StageError where one was left in float, or there is none.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preprocessing that fails on these operators
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(
                body,
                out,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7 bits: kernels without VNNI add two products in 16 bits
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
            )
    finally:
        logger.setLevel(level)
    wanted, left = _products(onnx.load(body)), _products(onnx.load(out))
    if left or not wanted:
        raise StageError(
            f"{len(left)} of {len(wanted)} products with weights stayed in float: {', '.join(left[:3])}"
            if wanted
            else "the body has no product with a weight matrix to quantize",
            where="export.variants",
            fix="leave int8-body out",
        )
    return len(wanted)


def _products(model: onnx.ModelProto) -> list[str]:
    """Names of the results of float products with a stored matrix; the quantizer takes a Gemm apart."""
    stored = {entry.name for entry in model.graph.initializer if entry.data_type == TensorProto.FLOAT}
    return [
        node.output[0]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in stored
    ]
