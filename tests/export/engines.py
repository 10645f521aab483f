"""Engines of the stand-in for TensorRT, built from a tiny scoring graph."""

import dataclasses
from pathlib import Path
from typing import Any

from export.config import ExportConfig
from export.runtime import Artifact, TopK
from export.tensorrt import Asked, build
from recommender.data.prepared import Prepared
from recommender.files import read_json
from recommender.scoring import HistoryArrays
from recommender.stage import Context
from tests.export.fixtures import MAX_LENGTH, TOP_K, left_padded
from tests.fakes.device import CpuDevice
from tests.recommender.fixtures import context_for

SEEN = 8
PROFILES = [[1, 1, 1], [1, 4, 8]]


def fit(path: Path) -> None:
    """The check of a test that is about something else."""


def built(onnx: Path, plan: Path, precision: str = "fp32", **asked: Any) -> dict[str, Any]:
    """Build a plan; what its manifest says."""
    device = CpuDevice()
    facts = build(onnx, plan, Asked(**asked), precision=precision, check=fit, device=device)
    return facts | {"length": MAX_LENGTH, "seen": SEEN, "top_k": TOP_K}


def context_in(folder: Path, prepared: Prepared) -> Context:
    return dataclasses.replace(context_for(prepared, folder, max_length=MAX_LENGTH), threads=1)


def config(*variants: str, top_k: int = TOP_K, **tensorrt: Any) -> ExportConfig:
    """An export of `student` with these variants; `tensorrt` replaces options of engines."""
    asked = {"profiles": PROFILES, **tensorrt}
    given = {"of": "student", "as": "trt", "top_k": top_k, "variants": list(variants), "tensorrt": asked}
    return ExportConfig.model_validate(given | {"parity": {"users": 20, "max_ndcg_change": 0.05}})


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in read_json(folder / "manifest.json")["variants"]}


def lists(folder: Path, variant: str) -> TopK:
    """What a variant answers to the same histories."""
    history = HistoryArrays(left_padded(21, MAX_LENGTH), left_padded(21, 9, seed=1))
    device = "cuda" if variant.startswith("tensorrt") else "cpu"
    return Artifact(folder, variant=variant, device=device).top_k(history, TOP_K)
