"""Rules about operators: which there are, on which types, with which inputs known beforehand."""

from collections.abc import Iterator

import onnx

from export.lint.findings import Asked, Fault
from export.lint.graph import Graph
from export.lint.supported import FEWER_TYPES, INSTEAD, OPERATORS, SINCE

STANDARD = ("", "ai.onnx")
OPSETS = range(17, 26)
CONSTANT_INPUTS = {
    "CumSum": (1, "axis"),
    "OneHot": (1, "depth"),
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
}
BY_VALUES = {"NonZero", "NonMaxSuppression", "Compress", "Unique"}


def inference(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """ONNX's own inference of types and shapes finds no contradiction: a graph that it refuses has no types
    that the other rules could judge (onnx.shape_inference).
    """
    if graph.inference_error is not None:
        yield Fault(graph.path.name, f"types or shapes contradict one another: {graph.inference_error}",
                    "onnx.checker.check_model(path, full_check=True) says more; export it again")  # fmt: skip


def opset(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Opset 17 to 25: TensorRT 11 reads 9 to 25 (ONNX opset guide), LayerNormalization begins at 17; 23 has
    norm, rotary embedding and attention as whole operators.
    """
    versions = {entry.version for entry in graph.model.opset_import if entry.domain in STANDARD}
    for version in sorted(versions) or [0]:
        if version not in OPSETS:
            yield Fault(graph.path.name, f"opset {version}, and TensorRT is given 17 to 25",
                        "export it at opset 23")  # fmt: skip


def domain(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Operators of ONNX only, and functions that the file itself defines: TensorRT knows no vendor's
    operators (onnx-tensorrt, operators.md).
    """
    own = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.nodes:
        if node.domain not in STANDARD and (node.domain, node.op_type) not in own:
            yield Fault(graph.told(node), f"is an operator of {node.domain}, which TensorRT does not know",
                        "take the canonical graph or its half precision (fp32, fp16, bf16), not one that was "
                        "made for onnxruntime")  # fmt: skip


def operator(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Every operator is in the support matrix of the parser (onnx-tensorrt, operators.md, 10.15; Swish came
    with 11).
    """
    for node in graph.nodes:
        if node.domain in STANDARD and node.op_type not in OPERATORS and node.op_type not in BY_VALUES:
            yield Fault(graph.told(node), "TensorRT has no such operator",
                        INSTEAD.get(node.op_type, "write it with operators of docs/lint.md"))  # fmt: skip


def parser_version(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """The parser of the version that is meant knows the operator: Attention came with 10.14, TensorScatter,
    RMSNormalization and RotaryEmbedding with 10.15, Swish with 11 (onnx-tensorrt, Changelog.md). A warning
    where no version is named.
    """
    for name, since in SINCE.items():
        found = [node for node in graph.nodes if node.domain in STANDARD and node.op_type == name]
        if found and (asked.tensorrt is None or asked.tensorrt < since):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            meant = "the oldest supported is 10.12" if asked.tensorrt is None else "the one meant is older"
            yield Fault(f"{graph.told(found[0])}{more}",
                        f"is read from TensorRT {since[0]}.{since[1]} on, and {meant}",
                        "export a variant tensorrt-*, whose graph has plain operators, or take a newer one",
                        "warning" if asked.tensorrt is None else "error")  # fmt: skip


def operator_type(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """The first input has a type that the support matrix names for the operator (onnx-tensorrt,
    operators.md). A warning: the parser takes some that the matrix leaves out (Clip of int64).
    """
    for node in graph.nodes:
        if node.domain not in STANDARD or node.op_type not in FEWER_TYPES or not node.input:
            continue
        given = graph.type_of(node.input[0])
        if given and given not in FEWER_TYPES[node.op_type]:
            names = ", ".join(type_name(each) for each in sorted(FEWER_TYPES[node.op_type]))
            yield Fault(graph.told(node), f"reads {type_name(given)}, and the support matrix names {names}",
                        "cast its input if the build refuses it", "warning")  # fmt: skip


def data_dependent_shape(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No shape that follows from values: it needs an output allocator, no CUDA graph can hold it, and of
    NonZero, NonMaxSuppression, Compress and Unique the parser has only the first two (operators.md).
    """
    for node in graph.nodes:
        if node.domain in STANDARD and node.op_type in BY_VALUES:
            yield Fault(graph.told(node), "the shape of its output depends on values",
                        "mask with torch.where(condition, a, b), not with indices")  # fmt: skip


def constant_input(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Axes of Reduce*, CumSum, Squeeze and Unsqueeze, and the depth of OneHot, are constants of the file
    (onnx-tensorrt, operators.md: "must be an initializer", "a build-time constant").
    """
    for node in graph.nodes:
        place = (1, "axes") if node.op_type.startswith("Reduce") else CONSTANT_INPUTS.get(node.op_type)
        if node.domain not in STANDARD or place is None or len(node.input) <= place[0]:
            continue
        name = node.input[place[0]]
        if name and graph.constant(name) is None:
            yield Fault(graph.told(node), f"its {place[1]} ({name}) is computed, not a constant",
                        f"write the {place[1]} as an initializer")  # fmt: skip


def gather_nd(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No GatherND: it is supported, but slower than Gather, and CUDA graphs of onnxruntime replay it wrongly
    (onnxruntime issue 33875). A warning.
    """
    yield from _told_of(graph, "GatherND", "is slow, and CUDA graphs of onnxruntime replay it wrongly",
                        "compute masks by broadcasting; index one axis with Gather")  # fmt: skip


def is_nan(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No IsNaN: it comes from attention over rows without any key, and keeps attention from fusing
    (torch.nn.functional.scaled_dot_product_attention at opset 20). A warning.
    """
    yield from _told_of(graph, "IsNaN", "is what is left of attention in pieces, which will not fuse",
                        "export at opset 23, and leave padded queries the diagonal")  # fmt: skip


def _told_of(graph: Graph, op_type: str, text: str, fix: str) -> Iterator[Fault]:
    found = [node for node in graph.nodes if node.domain in STANDARD and node.op_type == op_type]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Fault(f"{graph.told(found[0])}{more}", text, fix, "warning")


def type_name(data_type: int) -> str:
    """`int64`, `float16`: an element type in words."""
    return str(onnx.TensorProto.DataType.Name(data_type)).lower()
