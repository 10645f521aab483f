"""Engines of the stand-in for TensorRT, built from a tiny scoring graph."""

from pathlib import Path
from typing import Any

from export.tensorrt import Asked, build
from tests.export.fixtures import MAX_LENGTH, TOP_K
from tests.fakes.device import CpuDevice

SEEN = 8


def fit(path: Path) -> None:
    """The check of a test that is about something else."""


def built(onnx: Path, plan: Path, precision: str = "fp32", **asked: Any) -> dict[str, Any]:
    """Build a plan; what its manifest says."""
    device = CpuDevice()
    facts = build(onnx, plan, Asked(**asked), precision=precision, check=fit, device=device)
    return facts | {"length": MAX_LENGTH, "seen": SEEN, "top_k": TOP_K}
