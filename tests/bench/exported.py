"""A real model for benches with a roofline: its checkpoint, and artifacts with cost formulas and without."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import BenchConfig
from export.artifact import Origin, write_artifact
from recommender.checkpoint import save_checkpoint
from recommender.files import read_json, write_json
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.models.cost import cost_card
from recommender.scoring import HistoryArrays, ScorerRef
from recommender.stage import Bound
from tests.bench.fakes import tiny_log

CONFIG = SasrecConfig(layers=2, hidden=16)
BATCH = HistoryArrays(np.array([[0, 1, 2], [3, 4, 5]]), seen=np.array([[1, 2], [3, 4]]))
SETTINGS: dict[str, Any] = {"calls": 4, "seconds": 60, "repeats": 1, "buffer_mb": 0.25, "square": 16}


def quick(compare: list[str], **more: Any) -> BenchConfig:
    given = {
        "compare": compare, "batch_sizes": [1, 4], "loads": ["full"], "rounds": 4, "draws": 200, "aa": False,
        "energy": False, "roofline": SETTINGS,
    }  # fmt: skip
    return BenchConfig.model_validate({**given, **more})


def with_cost(exported: Path, folder: Path, name: str, cost: Any) -> Bound:
    """A copy of an artifact whose variant carries these cost formulas; None: none."""
    path = folder / name / "artifact"
    shutil.copytree(exported, path)
    manifest = read_json(path / "manifest.json")
    entry = manifest["variants"][-1]  # fast: a body and a head
    entry.pop("cost", None)
    if cost is not None:
        entry["cost"] = cost
    write_json(path / "manifest.json", manifest)
    write_json(folder / name / "stage.json", {"config": {"of": "student"}, "metrics": {}})
    options = {"variant": entry["name"]}
    ref = ScorerRef(name, "artifact", "onnxruntime", path, "export.artifact:open_artifact", options)
    return Bound(name, "artifact", path, folder / name, (ref,))


def student_bounds(folder: Path) -> Mapping[str, Bound]:
    """A real checkpoint, and its artifact with and without cost formulas."""
    prepared = tiny_log(folder / "prepared")
    model = build_model(CONFIG, n_items=8, max_length=4, seed=1).eval()
    path = folder / "student" / "checkpoint"
    save_checkpoint(model, path, prepared=prepared, model_config=CONFIG)
    write_json(folder / "student" / "stage.json", {"config": {}, "metrics": {}})
    ref = ScorerRef("student", "checkpoint", "torch", path, "recommender.checkpoint:open_scorer")
    exported, origin = folder / "exported", Origin(name="student-onnx", parents={}, recipe={})
    write_artifact(model, exported, prepared=prepared, origin=origin, top_k=8, opset=23)
    return {
        "student": Bound("student", "checkpoint", path, folder / "student", (ref,)),
        "known": with_cost(exported, folder, "known", cost_card(model)),
        "unknown": with_cost(exported, folder, "unknown", None),
    }
