"""Traces that tests share: torch takes seconds for a tiny model, and many tests export the same one."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import torch

from export.contract import ScoringExporterConfig
from export.graph import ScoringGraph

Trace = Callable[[ScoringGraph, ScoringExporterConfig, int], ir.Model]


class SharedTraces:
    """`trace` (torch.onnx.export of a scoring graph), once for graphs that are equal to the last bit.

    What cannot be compared (hooks, classes within a test) is traced each time. Code counts by its name: a
    test that patches the code of a model has to bring another `trace`. `folder` may be shared by processes.
    """

    def __init__(self, trace: Trace, folder: Path) -> None:
        self.trace, self.folder = trace, folder

    def __call__(self, graph: ScoringGraph, contract: ScoringExporterConfig, opset: int) -> ir.Model:
        """As `trace`."""
        try:
            path = self.folder / f"{digest((graph, contract.sizes, opset))}.onnx"
        except (AttributeError, TypeError, pickle.PicklingError):
            return self.trace(graph, contract, opset)
        if not path.exists():
            own = path.with_suffix(f".{os.getpid()}")
            own.write_bytes(ir.to_proto(self.trace(graph, contract, opset)).SerializeToString())
            own.replace(path)
        return ir.from_proto(onnx.load(path))


def digest(value: Any) -> str:
    """Of all that an object holds, tensors by their numbers; nothing is stored, and nothing read back.

    Raises what `pickle` raises for what it cannot walk through: AttributeError, TypeError, PicklingError.
    """
    found = hashlib.sha256()
    _Numbers(SimpleNamespace(write=found.update), protocol=5).dump(value)
    return found.hexdigest()


class _Numbers(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Tensors would be pickled with their addresses."""
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        facts = (type(value).__name__, value.dtype, tuple(value.shape), value.requires_grad)
        return bytes, (repr(facts).encode() + numbers.numpy().tobytes(),)
