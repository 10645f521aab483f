"""A graph written node by node, whose tables may lie in files beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class HeadGraph:
    """Nodes and initializers in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        names = list(outputs) or [f"{op.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def constant(self, name: str, values: object, dtype: object = np.int64) -> str:
        """Add a small initializer; its name."""
        array = np.array(values, dtype=dtype, order="C")  # type: ignore[call-overload]
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def beside(self, name: str, file: str, kind: int, shape: Sequence[int], offset: int) -> str:
        """Add an initializer whose values lie in a file beside the graph; its name."""
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        width = 1 if kind in (TensorProto.INT8, TensorProto.UINT8) else 4
        length = int(np.prod(shape)) * width
        for key, value in (("location", file), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name


def offset_of(path: Path) -> int:
    """Where the values begin in a .npy file."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        read[version](file)
        return file.tell()
