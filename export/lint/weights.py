"""Rules about the bytes of weights: where they lie, and whether half precision holds them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.lint.findings import Asked, Fault
from export.lint.graph import PIECE, Graph

LARGEST_INLINE = 2**31 - PIECE
"""Bytes of weights in the file itself from which on it is too near to the end of protobuf (2 GiB)."""
SMALLEST_NORMAL = 2.0**-14
MANY = 0.05
"""Share of denormal values from which on the scale of a weight is wrong, and not a few values small."""


def external_data(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Weights beyond 2 GiB lie beside the graph, below its folder, and are all there: protobuf ends at 2 GiB,
    and OnnxParser.parse_from_file reads external data relative to the file (ONNX, ExternalData.md).
    """
    inline = sum(map(len, graph.aside.values()))
    if inline > LARGEST_INLINE:
        yield Fault(graph.path.name, f"holds {inline:,} bytes of weights, and protobuf ends at 2 GiB",
                    "save the weights as external data")  # fmt: skip
    for name, tensor in graph.initializers.items():
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        file = graph.place(name)[0]
        inside = file.resolve().is_relative_to(graph.path.parent.resolve())
        if not inside:
            text = f"lies at {file}, outside of the folder of the graph"
        elif not file.is_file():
            text = f"lies in {file.name}, which is missing"
        elif not graph.is_there(name):
            text = f"is cut: {file.name} has {file.stat().st_size:,} bytes"
        else:
            continue
        yield Fault(f"weight {name!r}", text, "keep the graph and its .data file together; export it again")


def half_range(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No infinity and no NaN in float16 weights: what is beyond 65504 becomes infinite when it is cast
    (NVIDIA/TensorRT issues 2564, 3101, 4493). Single numbers may be infinite: masks are written so.
    """
    for name in _halves(graph):
        count = sum(int((~np.isfinite(values)).sum()) for values in _values(graph, name))
        if count:
            yield Fault(f"weight {name!r}", f"{count:,} of its float16 values are infinite or NaN",
                        "keep it in float32, or take bf16")  # fmt: skip


def half_denormal(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """At most 5% of the values of a float16 weight are denormal (below 6.1e-5): there it keeps few digits,
    and some kernels flush them to 0. A warning.
    """
    for name in _halves(graph):
        small = total = 0
        for values in _values(graph, name):
            sizes = np.abs(values.astype(np.float32))
            small += int(((sizes > 0) & (sizes < SMALLEST_NORMAL)).sum())
            total += int((sizes > 0).sum())
        if small > MANY * total:
            yield Fault(f"weight {name!r}", f"{small / total:.0%} of its float16 values are denormal",
                        "scale it up and its product down, or take bf16", "warning")  # fmt: skip


def _halves(graph: Graph) -> Iterator[str]:
    """Float16 weights of more than one number; bytes that are missing have a rule of their own."""
    for name, tensor in graph.initializers.items():
        many = int(np.prod(tensor.dims, dtype=np.int64)) > 1
        if tensor.data_type == onnx.TensorProto.FLOAT16 and many and graph.is_there(name):
            yield name


def _values(graph: Graph, name: str) -> Iterator[NDArray[Any]]:
    """The values of a float16 weight, piece by piece."""
    return (np.frombuffer(piece, np.float16) for piece in graph.pieces(name))
