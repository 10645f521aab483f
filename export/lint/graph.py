"""An ONNX file as the rules see it: nodes of all graphs within it, types, shapes, small constants.

Weights are not read: those beside the file stay there, those inside of it are set aside as bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from recommender.errors import InputError

SMALL = 1 << 10
"""Bytes up to which a weight may be a shape, an axis or a k, and stays where inference finds it."""
PIECE = 1 << 22
LARGEST = 2**31 - 1
"""Bytes of the largest protobuf message."""


@dataclass
class Graph:
    """One file, open for the rules."""

    path: Path
    model: Any  # onnx.ModelProto without its large weights; with the types and shapes that inference finds
    inference_error: str | None = None
    nodes: tuple[Any, ...] = ()
    initializers: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)  # name -> ValueInfoProto of a tensor
    made_by: dict[str, Any] = field(default_factory=dict)  # name -> the node whose output it is
    aside: dict[str, bytes] = field(default_factory=dict)  # name -> bytes of a large weight in the file

    def type_of(self, name: str) -> int:
        """Element type of a value; 0 (UNDEFINED) where it is not known."""
        if name in self.initializers:
            return int(self.initializers[name].data_type)
        return int(self.values[name].type.tensor_type.elem_type) if name in self.values else 0

    def rank_of(self, name: str) -> int | None:
        """Number of axes of a value; None where it is not known."""
        if name in self.initializers:
            return len(self.initializers[name].dims)
        tensor = self.values[name].type.tensor_type if name in self.values else None
        return len(tensor.shape.dim) if tensor is not None and tensor.HasField("shape") else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a constant (an initializer or a Constant node, also through Identity), else None.

        Meant for shapes, axes, k and zero points; whatever size, it is read whole. Raises InputError when
        its bytes are not there.
        """
        if name in self.initializers:
            return self.read(name)
        node = self.made_by.get(name)
        if node is None or node.op_type not in ("Constant", "Identity"):
            return None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        attribute = next(iter(node.attribute), None)
        value = None if attribute is None else onnx.helper.get_attribute_value(attribute)
        return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)

    def read(self, name: str) -> NDArray[Any]:
        """A weight, whole. Raises InputError when its bytes are not there."""
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self.initializers[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL or name in self.aside:
            pieces = b"".join(self.pieces(name))
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = pieces
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return array

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a weight, 4 MiB at a time. Raises InputError when they are not there."""
        tensor = self.initializers[name]
        if name in self.aside or tensor.data_location != onnx.TensorProto.EXTERNAL:
            raw = self.aside.get(name) or _bytes_of(tensor)
            yield from (raw[start : start + PIECE] for start in range(0, len(raw), PIECE))
            return
        file, offset, length = self.place(name)
        try:
            with file.open("rb") as opened:
                opened.seek(offset)
                while length > 0 and (piece := opened.read(min(length, PIECE))):
                    length -= len(piece)
                    yield piece
        except OSError as error:
            raise InputError(f"cannot be read: {error}", where=str(file)) from error

    def place(self, name: str) -> tuple[Path, int, int]:
        """(file, offset, bytes) of a weight beside the graph."""
        told = {entry.key: entry.value for entry in self.initializers[name].external_data}
        length = int(told.get("length", self.size_of(name)))
        return self.path.parent / told.get("location", ""), int(told.get("offset", 0)), length

    def is_there(self, name: str) -> bool:
        """Whether the bytes of a weight are at hand, in the file or beside it, all of them."""
        if self.initializers[name].data_location != onnx.TensorProto.EXTERNAL:
            return True
        file, offset, length = self.place(name)
        return file.is_file() and file.stat().st_size >= offset + length and length >= self.size_of(name)

    def size_of(self, name: str) -> int:
        """Bytes of a weight, by its shape and type."""
        return bytes_of_tensor(self.initializers[name])

    def told(self, node: Any) -> str:
        """A node in words."""
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        return f"{domain}{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of an attribute."""
    for each in node.attribute:
        if each.name == name:
            return onnx.helper.get_attribute_value(each)
    return default


def read_graph(path: Path) -> Graph:
    """Parse a file and infer its types and shapes. Raises InputError for a file that is no ONNX."""
    graph = Graph(path, _parse(path))
    for scope in _graphs(graph.model.graph):
        for tensor in scope.initializer:
            if len(tensor.raw_data) > SMALL:
                graph.aside[tensor.name] = tensor.raw_data
                tensor.ClearField("raw_data")
    try:
        graph.model = onnx.shape_inference.infer_shapes(graph.model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        graph.inference_error = next(iter(str(error).strip().splitlines()), type(error).__name__)
        graph.model = onnx.shape_inference.infer_shapes(graph.model)  # as far as it gets
    nodes: list[Any] = []
    for scope in _graphs(graph.model.graph):
        nodes += scope.node
        graph.initializers |= {tensor.name: tensor for tensor in scope.initializer}
        values = (*scope.value_info, *scope.input, *scope.output)
        graph.values |= {value.name: value for value in values if value.type.HasField("tensor_type")}
    for function in graph.model.functions:
        nodes += function.node
    graph.nodes = tuple(nodes)
    graph.made_by = {name: node for node in nodes for name in node.output if name}
    return graph


def _parse(path: Path) -> Any:
    fix = "give the .onnx file of a model"
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(
                f"has {path.stat().st_size:,} bytes, and protobuf ends at 2 GiB: no runtime can read it",
                where=str(path),
                fix="save it with its weights in external data",
            )
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    except DecodeError as error:
        raise InputError(f"is no ONNX file: {error}", where=str(path), fix=fix) from error
    if not (model.ir_version and model.opset_import and model.HasField("graph")):
        raise InputError("is no ONNX file: it has no graph or no opset", where=str(path), fix=fix)
    return model


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and all within its nodes (branches of If, bodies of Loop and Scan)."""
    yield graph
    for node in graph.node:
        for each in node.attribute:
            if each.HasField("g"):
                yield from _graphs(each.g)
            for inner in each.graphs:
                yield from _graphs(inner)


def _bytes_of(tensor: Any) -> bytes:
    return tensor.raw_data or bytes(onnx.numpy_helper.to_array(tensor).tobytes())


def bytes_of_tensor(tensor: Any) -> int:
    """Bytes of a stored tensor, by its shape and type."""
    count = int(np.prod(tensor.dims, dtype=np.int64)) if tensor.dims else 1
    return (count * _bits(tensor.data_type) + 7) // 8


def _bits(data_type: int) -> int:
    if data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1):
        return 4
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize) * 8
    except (KeyError, ValueError, TypeError):
        return 8
