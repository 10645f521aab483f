"""What TensorRT's parser reads: operators.md of onnx-tensorrt (10.15; 11 adds Swish), as plain facts."""

import onnx

_T = onnx.TensorProto
_FLOATS = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16})
_NUMBERS = _FLOATS | {_T.INT32, _T.INT64}

FLOATS_ONLY = [
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "BatchNormalization", "Ceil",
    "Celu", "Clip", "Conv", "ConvTranspose", "Cos", "Cosh",
    "CumSum", "Elu", "Erf", "Exp", "Floor", "GRU", "Gemm", "GlobalAveragePool", "GlobalLpPool",
    "GlobalMaxPool", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Hardmax", "InstanceNormalization", "IsInf", "LRN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Log",
    "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "MaxPool", "MeanVarianceNormalization", "PRelu",
    "QuantizeLinear",
    "RMSNormalization", "RNN", "Reciprocal", "Resize", "RotaryEmbedding", "Round", "Selu", "Sigmoid",
    "Sin", "Sinh", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu",
]  # fmt: skip
NUMBERS = [
    "Abs", "Add", "ArgMax", "ArgMin", "DepthToSpace", "Div", "Equal", "Greater", "GreaterOrEqual",
    "IsNaN", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul",
    "Neg", "Pad", "Pow", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "ScatterElements", "ScatterND", "Shrink", "Sign",
    "SpaceToDepth", "Sub", "Sum", "TopK",
]  # fmt: skip
TRUTHS = ["And", "Not", "Or", "Xor"]
OTHERS = [
    "Attention", "BlackmanWindow", "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape",
    "DeformConv", "DequantizeLinear", "Dropout",
    "Einsum", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu",
    "GridSample", "HammingWindow", "HannWindow",
    "Identity", "If", "Loop", "Mean", "Mish", "OneHot", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike", "Reshape",
    "ReverseSequence", "RoiAlign", "STFT", "Scan", "Shape", "Size", "Slice", "Split", "Squeeze", "Swish",
    "TensorScatter", "Tile", "Transpose", "Trilu",
    "Unsqueeze", "Where",
]  # fmt: skip

OPERATORS = frozenset({*FLOATS_ONLY, *NUMBERS, *TRUTHS, *OTHERS})
"""What the parser reads; NonZero and NonMaxSuppression (shapes by values) have a rule of their own."""

FEWER_TYPES = {
    **dict.fromkeys(FLOATS_ONLY, _FLOATS),
    **dict.fromkeys(NUMBERS, _NUMBERS),
    **dict.fromkeys(TRUTHS, frozenset({_T.BOOL})),
}
"""Operators that do not take every type, with those that they do take."""

SINCE = {
    "Attention": (10, 14), "RMSNormalization": (10, 15), "RotaryEmbedding": (10, 15),
    "Swish": (11, 0), "TensorScatter": (10, 15),
}  # fmt: skip
"""Operators that came after 10.12, the oldest TensorRT that is supported: (major, minor) of that parser."""

INSTEAD = {
    **dict.fromkeys(
        ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
        "dynamic int8 of onnxruntime cannot go to TensorRT: take fp16, or symmetric Q/DQ (variant qdq)",
    ),
    **dict.fromkeys(
        ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"),
        "compute with And, Or and Not of booleans, or with Mod and Div",
    ),
    **dict.fromkeys(("Multinomial", "Bernoulli"), "draw outside of the graph"),
}
"""How to do without some that it does not read."""
