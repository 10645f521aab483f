"""Write and open an artifact: a folder that recommends without torch and without our training code.

    manifest.json        SHA-256 and size of all of the below, parents, recipe, versions, variants, catalogue
    runtime.py           a copy of `export.runtime`
    body.onnx            item vectors of a history in, user vector out: knows nothing of the catalogue
    body-fast.onnx       the same, rewritten for onnxruntime; where they are asked for: body-int8.onnx in 8
                         bits, body-quantized.onnx and body-qdq.onnx as the checkpoint's scheme says
    catalogue-1/         the catalogue (`export.catalogue`), and what is made of it:
      fp32.onnx          the canonical graph, whole (with fp32.onnx.data beside it where it would pass 1 GiB)
      fp16.onnx          the same in half precision, bf16.onnx likewise, where they are asked for
      head-exact.onnx    user vectors to lists (`export.head`), head-int8.onnx likewise
      item_table.recorded.npy, ...scales.npy: the item table as the checkpoint's scheme says, in few bits
      ann.faiss          an approximate index of the item vectors (`export.ann`), where it is asked for
      tensorrt-fp16.plan an engine for one GPU (`export.engines`), with the graph it was built from, where it
                         is asked for; runtime_tensorrt.py, a copy of `export.tensorrt`, then lies above
      aot.pt2            the canonical graph compiled for one kind of machine (`export.aot_build`) and
                          aot-bf16.pt2, where they are asked for; runtime_aot.py beside runtime.py opens them
      golden.json        made-up requests and their answers

`card.md` is written later from measured numbers and is the one file that no digest covers.
"""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export import runtime
from export.ann import AnnConfig
from export.aot_build import AotConfig, check_build, compiled_entry
from export.catalogue import catalogue_name, write_catalogue
from export.entries import BODY, RECORDED, cost_of, told_of_bits, variant_entry, write_bodies
from export.recorded_table import record
from export.runtime import Artifact, ArtifactError
from export.variants import CANONICAL, COMPILED, ENGINE, VariantName, scheme_problem, to_try
from recommender.checkpoint import body_parameters, stored_parameters
from recommender.data.prepared import Prepared
from recommender.errors import InputError, StageError, require
from recommender.files import complete_folder, read_json, sha256_file, write_json
from recommender.quantization_scheme import Quantization, TableBits

if TYPE_CHECKING:
    from export.engines import EngineOrder
    from export.onnx import OnnxFacts
    from export.recorded import Recorded
    from recommender.models.interface import SequentialRecommender

CANONICAL_FILE = "fp32.onnx"
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
    sparsity: Mapping[str, Any] | None = None  # what the checkpoint notes of zeros; None: nothing


def write_artifact(
    model: "SequentialRecommender",
    folder: Path,
    *,
    prepared: Prepared,
    origin: Origin,
    top_k: int,
    opset: int,
    variants: Sequence[VariantName] | None = None,
    int8_users: int = 1,
    ann: AnnConfig | None = None,
    aot: AotConfig | None = None,
    quantization: Quantization | None = None,
    engines: "EngineOrder | None" = None,
) -> "OnnxFacts":
    """Export `model` and write the whole folder in one step; an older one at the same place is replaced.

    `variants`: besides the canonical graph; None: whichever may pay (`export.variants.to_try`). `int8_users`:
    most users in a call of a body with dynamic 8-bit inputs. `ann`: of the approximate index. `aot`: of the
    compiled variants. `quantization`: what the checkpoint records. `engines`: how they are built, where any
    is asked for. What the canonical graph came to is returned. Raises InputError when top_k does not fit the
    catalogue, an index, an engine or a compiled variant cannot be made here, or the scheme does not fit a
    variant, StageError when the model cannot be exported or compiled, GateError where an engine computes in
    other types than it promises.
    """
    from export.onnx import export_onnx
    from export.recorded import left_in_float, recorded

    names = to_try(variants, model.n_items)
    if "ann" in names:
        require("faiss", extra="ann", for_="the variant ann")  # before the work, not after it
    if not ENGINE.keys().isdisjoint(names):
        from export.engines import gpu_for

        gpu_for(names)
    if not {*COMPILED}.isdisjoint(names):
        check_build(aot or AotConfig())
    scheme = None if quantization is None else quantization.scheme
    for variant in names:
        if wrong := scheme_problem(variant, None if scheme is None else scheme.summary, origin.name):
            raise InputError(wrong, where="export.variants")
    matrices: dict[str, Recorded] = {}
    if quantization is not None and not {*RECORDED, "tensorrt-int8"}.isdisjoint(names):
        matrices = recorded(model, quantization)
    with complete_folder(folder) as temporary:
        catalogue = temporary / catalogue_name(1)
        catalogue.mkdir()
        facts = export_onnx(model, catalogue / CANONICAL_FILE, top_k=top_k, opset=opset)
        table = model.item_table().detach().cpu().float().numpy()
        write_catalogue(catalogue, prepared.catalogue, table)
        bits: TableBits = "fp32" if scheme is None or "quantized" not in names else scheme.item_table
        if quantization is not None and bits != "fp32":
            record(catalogue, table, quantization)
        bodies = write_bodies(temporary, catalogue / CANONICAL_FILE, model.max_length, names, matrices)
        shutil.copyfile(runtime.__file__, temporary / "runtime.py")
        manifest = _manifest(model, prepared, origin, facts, top_k)
        for name in names[1:]:
            if name in COMPILED:
                entry = compiled_entry(name, model, manifest, temporary, aot or AotConfig())
            else:
                order = None if engines is None else replace(engines, matrices=matrices)
                entry = variant_entry(name, manifest, bodies, catalogue, ann or AnnConfig(), bits, order)
            told = told_of_bits(name, scheme, int8_users)
            if name in RECORDED:
                told["float_weights"] = left_in_float(temporary / str(entry["body"]), model)
            manifest["variants"].append(entry | told | {"cost": cost_of(model, name, scheme)})
        seal(temporary, manifest)
        try:
            write_golden(temporary)
        except ArtifactError as error:
            raise StageError(f"the exported model cannot answer: {error}", where="export") from error
    return facts


def keep_variants(folder: Path, keep: Sequence[str], default: str, measured: Mapping[str, Any]) -> None:
    """Take the variants that are not in `keep` out of an artifact that nobody uses yet, with their files.

    `measured`: variant -> what was measured of it, noted in its entry (dropped ones: under `dropped`). Where
    the canonical graph goes, so do the plain body, and the float32 item table that nobody reads then.
    """
    manifest = read_json(folder / "manifest.json")
    entries = {entry["name"]: entry | measured.get(entry["name"], {}) for entry in manifest["variants"]}
    manifest["variants"] = [entries[name] for name in entries if name in keep]
    manifest["dropped"] = {name: measured.get(name, {}) for name in entries if name not in keep}
    manifest["default_variant"] = default
    there = named_files(manifest | {"variants": list(entries.values())})
    if CANONICAL not in keep:
        manifest["body"] = entries[default]["body"]
    for name in there - named_files(manifest):
        (folder / name).unlink()
    seal(folder, manifest, known=manifest["files"])
    write_golden(folder)


def write_golden(folder: Path) -> None:
    """Answer made-up requests with the default variant of an artifact that nobody uses yet, and seal it."""
    artifact = Artifact(folder, threads=1, verify=False)
    golden = golden_requests(artifact, artifact.limit)
    name = f"{artifact.manifest['catalogue']['folder']}/golden.json"
    write_json(folder / name, golden)
    others = {file: entry for file, entry in artifact.manifest["files"].items() if file != name}
    seal(folder, artifact.manifest, known=others)


def seal(folder: Path, manifest: dict[str, Any], *, known: Mapping[str, Any] | None = None) -> None:
    """Write the manifest, with the size and digest of every file that it names, whatever else lies there.

    It stands at the top, where it says which version of the catalogue is in use, and in the folder of that
    version, so that the version can be put back. `known`: entries of files that were digested a moment ago
    and not written since; they are not read again, as they may be gigabytes. Raises FileNotFoundError when a
    file is missing; only golden.json may come later.
    """
    used = manifest["catalogue"]["folder"]
    names = named_files(manifest)
    if not (folder / used / "golden.json").is_file():
        names.remove(f"{used}/golden.json")
    known = known or {}
    files = {
        name: known.get(name)
        or {"size_bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in sorted(names)
    }
    for place in (folder / used, folder):
        write_json(place / "manifest.json", manifest | {"files": files})


def named_files(manifest: Mapping[str, Any]) -> set[str]:
    """The files that an artifact consists of, manifests aside, relative to its folder."""
    of_variants = {name for entry in manifest["variants"] for name in entry["files"]}
    of_catalogue = (*runtime.catalogue_files(manifest), "items.parquet", "golden.json")
    used = manifest["catalogue"]["folder"]
    return of_variants | {manifest["body"], "runtime.py"} | {f"{used}/{name}" for name in of_catalogue}


def _manifest(
    model: "SequentialRecommender", prepared: Prepared, origin: Origin, facts: "OnnxFacts", top_k: int
) -> dict[str, Any]:
    from recommender.models.cost import cost_card

    folder = catalogue_name(1)
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
        **({} if origin.sparsity is None else {"sparsity": dict(origin.sparsity)}),
        "body": BODY,
        "catalogue": {
            "version": 1,
            "folder": folder,
            "items": model.n_items,
            "width": int(model.item_table().shape[1]),
        },
        "default_variant": CANONICAL,
        "variants": [
            {
                "name": CANONICAL,
                "about": "the canonical graph: portable, whole",
                "precision": "fp32",
                "format": "onnx",
                "opset": facts.opset,
                "top_k": top_k,
                "max_length": model.max_length,
                "parameters": stored_parameters(model),
                "body_parameters": body_parameters(model),
                "inputs": {"items": ["batch", "length"], "seen": ["batch", "seen"]},
                "outputs": {"top_items": ["batch", top_k], "scores": ["batch", top_k]},
                "graph": f"{folder}/{facts.files[0]}",
                "files": [f"{folder}/{name}" for name in facts.files],
                "cost": cost_card(model),
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
    device: str | None = None,
    verify: bool = True,
    version: int | None = None,
) -> Artifact:
    """Open an artifact. Raises InputError when it is missing, truncated, altered, or has no such variant."""
    try:
        return Artifact(path, variant=variant, threads=threads, device=device, verify=verify, version=version)
    except ArtifactError as error:
        raise InputError(str(error), where="artifact") from error
