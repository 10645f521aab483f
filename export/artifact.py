"""Write and open an artifact: a folder that recommends without torch and without our training code.

    fp32.onnx       the canonical graph (with fp32.onnx.data beside it where it would pass 1 GiB)
    items.parquet   row, item_id, title, further text
    catalogue.json  ids and titles by row, for the runtime
    item_table.npy  float32 [n_items + 1, D], output side
    golden.json     made-up requests and their answers
    runtime.py      a copy of `export.runtime`
    manifest.json   SHA-256 and size of all of the above, parents, recipe, versions, variants

`card.md` is written later from measured numbers and is the one file that no digest covers.
"""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export import runtime
from export.runtime import Artifact, ArtifactError
from recommender.checkpoint import body_parameters, stored_parameters
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import complete_folder, sha256_file, write_json

if TYPE_CHECKING:
    from export.onnx import OnnxFacts
    from recommender.models.interface import SequentialRecommender

VARIANT = "fp32"
OUTSIDE_DIGESTS = ("manifest.json", "card.md")
PACKAGES = ("recpress", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "optimum", "numpy")
GOLDEN_REQUESTS = 8


@dataclass(frozen=True)
class Origin:
    """Where an artifact comes from, for its manifest."""

    name: str
    parents: Mapping[str, str]  # name of the checkpoint -> SHA-256 of its folder
    recipe: Mapping[str, Any]
    mask_seen: bool = True
    command: str = ""
    seed: int = 0
    split: Any = None  # `evaluation.split` as JSON; None: not told


def write_artifact(
    model: "SequentialRecommender",
    folder: Path,
    *,
    prepared: Prepared,
    origin: Origin,
    top_k: int,
    opset: int,
) -> "OnnxFacts":
    """Export `model` and write the whole folder in one step; an older one at the same place is replaced.

    Raises InputError when top_k does not fit the catalogue, StageError when the model cannot be exported.
    """
    from export.onnx import export_onnx

    with complete_folder(folder) as temporary:
        facts = export_onnx(model, temporary / f"{VARIANT}.onnx", top_k=top_k, opset=opset)
        table = model.item_table().detach().cpu().float().numpy()
        np.save(temporary / "item_table.npy", np.ascontiguousarray(table), allow_pickle=False)
        catalogue = prepared.catalogue.sort("row")
        catalogue.write_parquet(temporary / "items.parquet")
        ids = [str(item_id) for item_id in catalogue["item_id"].to_list()]
        titles = catalogue["title"].to_list() if "title" in catalogue.columns else [None] * len(ids)
        write_json(temporary / "catalogue.json", {"item_ids": ids, "titles": titles})
        shutil.copyfile(runtime.__file__, temporary / "runtime.py")
        manifest = _manifest(model, prepared, origin, facts, top_k)
        _seal(temporary, manifest)
        write_json(temporary / "golden.json", golden_requests(Artifact(temporary, threads=1), top_k))
        _seal(temporary, manifest)
    return facts


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the size and digest of every other file."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in OUTSIDE_DIGESTS)
    files = {
        name: {"size_bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in names
    }
    write_json(folder / "manifest.json", manifest | {"files": files})


def _manifest(
    model: "SequentialRecommender", prepared: Prepared, origin: Origin, facts: "OnnxFacts", top_k: int
) -> dict[str, Any]:
    return {
        "schema_version": runtime.SCHEMA_VERSION,
        "name": origin.name,
        "kind": "recommender",
        "parents": dict(origin.parents),
        "command": origin.command,
        "seed": origin.seed,
        "recipe": dict(origin.recipe),
        "data": {
            "name": prepared.meta["name"],
            "digest": prepared.digest,
            "catalogue_digest": prepared.catalogue_digest,
            "items": prepared.n_items,
            "split": origin.split,
        },
        "mask_seen": origin.mask_seen,
        "default_variant": VARIANT,
        "variants": [
            {
                "name": VARIANT,
                "file": facts.files[0],
                "precision": "fp32",
                "format": "onnx",
                "opset": facts.opset,
                "top_k": top_k,
                "max_length": model.max_length,
                "parameters": stored_parameters(model),
                "body_parameters": body_parameters(model),
                "inputs": {"items": ["batch", "length"], "seen": ["batch", "seen"]},
                "outputs": {"top_items": ["batch", top_k], "scores": ["batch", top_k]},
            }
        ],
        "machine": {
            "onnx": {"opset": facts.opset, "ir_version": facts.ir_version},
            "onnxruntime": ">=1.23",
            "instruction_set": "any",
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that made the artifact, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # recpress itself, when it runs from a checkout that is not installed
    return found


def golden_requests(artifact: Artifact, k: int, seed: int = 0) -> dict[str, Any]:
    """Made-up histories (no real user travels with an artifact) and what the fresh artifact answers."""
    rng = np.random.default_rng(seed)
    lengths = np.unique(np.linspace(1, artifact.max_length, GOLDEN_REQUESTS).astype(int))
    requests = []
    for length in lengths:
        rows = rng.integers(1, artifact.n_items + 1, length)
        history = [artifact.item_ids[row - 1] for row in rows]
        answer = artifact.recommend(history, k)
        requests.append(
            {
                "history": history,
                "items": [item["item_id"] for item in answer],
                "scores": [item["score"] for item in answer],
            }
        )
    return {"variant": artifact.variant, "k": k, "requests": requests}


def open_artifact(
    path: Path,
    *,
    variant: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    verify: bool = True,
) -> Artifact:
    """Open an artifact. Raises InputError when it is missing, truncated, altered, or has no such variant."""
    try:
        return Artifact(path, variant=variant, threads=threads, device=device, verify=verify)
    except ArtifactError as error:
        raise InputError(str(error), where="artifact") from error
