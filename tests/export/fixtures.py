"""Tiny recommenders and artifacts that the export tests share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from export.ann import AnnConfig
from export.aot_build import AotConfig
from export.artifact import Origin, write_artifact
from export.variants import VariantName
from recommender.data.prepared import Prepared
from recommender.files import sha256_file
from recommender.models.build import build_model
from recommender.models.config import (
    FAMILIES,
    ItemVectorsConfig,
    LlmConfig,
    ModelConfig,
    PopularityConfig,
    SasrecConfig,
)
from recommender.models.interface import Hidden, History, SequentialRecommender

N_ITEMS, MAX_LENGTH, TOP_K = 40, 12, 15


class OnlyVectors(SequentialRecommender):
    """A model that makes its user vector in one go, and has no stream of states to show."""

    def hidden(self, history: History, **_: object) -> Hidden:
        raise AssertionError("nobody asks for it")

    def project(self, states: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nobody asks for it")


MODELS: dict[str, ModelConfig] = {
    family: LlmConfig(family=family, layers=2, hidden=16, heads=2, item_dim=8)  # type: ignore[arg-type]
    for family in FAMILIES
} | {
    "sasrec": SasrecConfig(hidden=16, layers=2),
    "sasrec-query": SasrecConfig(hidden=16, layers=2, norm="query", padding="zeroed"),
    "sasrec-pre": SasrecConfig(hidden=16, layers=2, norm="pre", padding="attended"),
    "sasrec-post": SasrecConfig(hidden=16, layers=2, norm="post", padding="attended"),
    "fixed-slots": LlmConfig(family="llama", layers=2, hidden=16, heads=2, item_dim=8, fixed_slots=True),
    "narrow": LlmConfig(  # as prune-width leaves it: heads are together wider than the stream
        family="qwen3", layers=2, hidden=12, heads=3, kv_heads=1, head_dim=8, ffn=20, item_dim=8
    ),
    "item-vectors": ItemVectorsConfig(),
    "popularity": PopularityConfig(),
}


def tiny_model(name: str, *, n_items: int = N_ITEMS, max_length: int = MAX_LENGTH) -> SequentialRecommender:
    counts = torch.arange(n_items + 1).flip(0) // 3  # ties of three rows each
    vectors = None
    if isinstance(MODELS[name], ItemVectorsConfig):
        vectors = torch.randn(n_items + 1, 8, generator=torch.Generator().manual_seed(3))
        vectors[0] = 0
    sizes = {"n_items": n_items, "max_length": max_length}
    return build_model(MODELS[name], **sizes, seed=3, counts=counts, item_vectors=vectors).eval()


def make_artifact(
    model: SequentialRecommender,
    folder: Path,
    prepared: Prepared,
    *,
    variants: Sequence[VariantName] | None = None,
    int8_users: int = 1,
    ann: AnnConfig | None = None,
    aot: AotConfig | None = None,
    **values: Any,
) -> Path:
    """Write an artifact; `values` replace entries of its Origin."""
    entries: dict[str, Any] = {"name": folder.name, "parents": {"tiny": "0" * 64}, "recipe": {"name": "test"}}
    origin = Origin(**(entries | values))
    write_artifact(
        model, folder, prepared=prepared, origin=origin, top_k=TOP_K, opset=23, variants=variants,
        int8_users=int8_users, ann=ann, aot=aot,
    )  # fmt: skip
    return folder


def left_padded(users: int, length: int, *, seed: int = 0, n_items: int = N_ITEMS) -> np.ndarray:
    """[users, length] random rows; user i has 1 to `length` of them, zeros in front."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, n_items + 1, (users, length))
    rows[np.arange(length)[None] < rng.integers(0, length, users)[:, None]] = 0
    return rows


def perturb(path: Path, scale: float, seed: int = 0) -> None:
    """Add noise to the largest float weight of a graph, as a wrong conversion would."""
    model = onnx.load(path)
    floats = [entry for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT]
    largest = max(floats, key=lambda entry: int(np.prod(entry.dims)))
    weight = numpy_helper.to_array(largest)
    noise = np.random.default_rng(seed).normal(0, scale, weight.shape).astype(np.float32)
    largest.CopyFrom(numpy_helper.from_array(weight + noise, largest.name))
    onnx.save(model, path)


def reseal(folder: Path) -> None:
    """Make the manifest's digests true again after a file was changed on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        path = folder / name
        entry["size_bytes"], entry["sha256"] = path.stat().st_size, sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
