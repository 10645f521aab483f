"""Rules about TopK, the end of every scoring graph."""

from collections.abc import Iterator
from typing import Any

from export.lint.findings import Asked, Fault
from export.lint.graph import Graph, attribute

LIMIT = 3840
LARGER = "ask for shorter lists (export.top_k), or return user vectors and score outside"


def top_k_limit(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """k at most 3840 (TensorRT, operators/TopK.html); at 3840 itself a warning, as the parser's page says
    "less than" (onnx-tensorrt, operators.md).
    """
    for node, k in _with_k(graph):
        if k is not None and k > LIMIT:
            yield Fault(graph.told(node), f"asks for {k}, and TensorRT's TopK ends at {LIMIT}", LARGER)
        elif k == LIMIT:
            yield Fault(graph.told(node), f"asks for {k}, which the parser may refuse: it wants fewer",
                        f"ask for {LIMIT - 1}", "warning")  # fmt: skip


def top_k_constant(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """k is a constant of the file: a k that is computed makes the shape of the answer depend on values
    (TensorRT, operators/TopK.html).
    """
    for node, k in _with_k(graph):
        if k is None:
            yield Fault(graph.told(node), f"its k ({node.input[1]}) is computed, not a constant",
                        "fix the length of the lists when exporting")  # fmt: skip


def top_k_sorted(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """sorted = 1 (onnx-tensorrt, operators.md)."""
    for node, _ in _with_k(graph):
        if attribute(node, "sorted", 1) != 1:
            yield Fault(graph.told(node), "has sorted = 0, and TensorRT's TopK is always sorted",
                        "export with torch.topk(..., sorted=True)")  # fmt: skip


def top_k_axis(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Over the last axis: the four last are allowed (TensorRT, operators/TopK.html), and only the last has
    the fast plugin; a warning where the number of axes is not known.
    """
    for node, _ in _with_k(graph):
        axis, rank = attribute(node, "axis", -1), graph.rank_of(node.input[0])
        if axis == -1 or (rank is not None and axis == rank - 1):
            continue
        known = rank is not None or axis < 0
        yield Fault(graph.told(node), f"goes over axis {axis}, not over the last one",
                    "transpose the scores first", "error" if known else "warning")  # fmt: skip


def _with_k(graph: Graph) -> Iterator[tuple[Any, int | None]]:
    """Every TopK and its k; None where it is computed."""
    for node in graph.nodes:
        if node.op_type == "TopK" and node.domain in ("", "ai.onnx"):
            k = graph.constant(node.input[1])
            yield node, None if k is None or k.size != 1 else int(k.reshape(-1)[0])
