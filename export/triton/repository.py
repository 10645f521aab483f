"""Write a repository:

repository.json     SHA-256 and size of all of the below, parents, models with inputs, outputs and padding
models/NAME/        config.pbtxt, and the graph in the folder of its version: the server reads this
catalogue/          item ids and titles by row, as in the artifact, and items.parquet
golden.json         made-up requests, and what each model answers
client_http.py, client_grpc.py, load-test.sh, load-test.json, README.md
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.runtime import Artifact
from export.triton.config import TritonConfig
from export.triton.golden import golden_requests, padded
from export.triton.models import Served, config_of, served_model
from recommender.errors import InputError
from recommender.files import complete_folder, read_json, sha256_file, write_json, write_text

MARK = "repository.json"
SCHEMA_VERSION = 1
CATALOGUE = ("ids.utf8", "ids.npy", "titles.utf8", "titles.npy", "items.parquet")
CLIENTS = ("client_http.py", "client_grpc.py")
LOAD_TEST = """#!/bin/sh
# 1 to 65 requests at a time over gRPC; perf_analyzer is in nvcr.io/nvidia/tritonserver:26.09-py3-sdk.
exec perf_analyzer -m {model} -i grpc -u "${{1:-localhost:8001}}" -b 1 \\
  --input-data "$(dirname "$0")/load-test.json" --concurrency-range 1:65:8 --percentile=99
"""


def write_repository(
    artifact: Artifact, folder: Path, config: TritonConfig, *, name: str, command: str = ""
) -> dict[str, Any]:
    """Write the whole folder in one step; its manifest is returned.

    `artifact`: opened with any variant. Raises InputError for a variant that the artifact does not have or
    that no server can run as asked, StageError where a graph does not answer.
    """
    models = _models(artifact, config, config.name or name)
    histories = [each["history"] for each in _golden(artifact)["requests"]]
    with complete_folder(folder) as temporary:
        for model in models:
            _write_model(temporary / "models" / model.name, model, config)
        _write_catalogue(artifact, temporary / "catalogue")
        golden = golden_requests(artifact, models, histories, config.seen_step)
        write_json(temporary / "golden.json", golden)
        _write_load_test(artifact, temporary, models[0], histories, config)
        manifest = _manifest(artifact, models, config, name, command)
        _write_texts(temporary, manifest, histories[-1])
        seal(temporary, manifest)
    return manifest


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the size and digest of every file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }
    write_json(folder / MARK, manifest)


def _models(artifact: Artifact, config: TritonConfig, name: str) -> list[Served]:
    """The first variant under the plain name, the others under NAME-VARIANT."""
    entries = {entry["name"]: entry for entry in artifact.manifest["variants"]}
    missing = [variant for variant in config.variants if variant not in entries]
    if missing:
        raise InputError(
            f"{artifact.folder} has no variant {', '.join(missing)} (it has: {', '.join(entries)})",
            where="export.triton.variants",
            fix="name it in the variants of the export that makes the artifact",
        )
    names = [name, *(f"{name}-{variant}" for variant in config.variants[1:])]
    return [
        served_model(each, entries[variant], artifact.folder, config)
        for each, variant in zip(names, config.variants, strict=True)
    ]


def _golden(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = read_json(
        artifact.folder / artifact.manifest["catalogue"]["folder"] / "golden.json"
    )
    return found


def _write_model(folder: Path, model: Served, config: TritonConfig) -> None:
    version = folder / str(config.version)
    version.mkdir(parents=True)
    shutil.copyfile(model.graph, version / model.file)
    for file in model.beside:
        shutil.copyfile(file, version / file.name)  # the graph knows its weights by this name
    write_text(folder / "config.pbtxt", config_of(model, config))


def _write_catalogue(artifact: Artifact, folder: Path) -> None:
    folder.mkdir()
    source = artifact.folder / artifact.manifest["catalogue"]["folder"]
    for name in CATALOGUE:
        shutil.copyfile(source / name, folder / name)


def _write_load_test(
    artifact: Artifact, folder: Path, model: Served, histories: Sequence[Sequence[str]], config: TritonConfig
) -> None:
    """Requests for perf_analyzer, which would send random numbers: those are no rows."""
    mask, data = bool(artifact.manifest["mask_seen"]), []
    for history in histories:
        rows = [artifact.rows[item] for item in history]
        given = padded(rows, mask, model.items, model.seen, config.seen_step)
        shapes = [list(each.shape if not model.max_batch_size else each.shape[1:]) for each in given]
        data.append({
            tensor.name: {"content": array.reshape(-1).tolist(), "shape": shape}
            for tensor, array, shape in zip(model.inputs, given, shapes, strict=True)
        })  # fmt: skip
    write_json(folder / "load-test.json", {"data": data})
    write_text(folder / "load-test.sh", LOAD_TEST.format(model=model.name))
    (folder / "load-test.sh").chmod(0o755)


def _manifest(
    artifact: Artifact, models: Sequence[Served], config: TritonConfig, name: str, command: str
) -> dict[str, Any]:
    told = artifact.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "repository",
        "name": name,
        "of": told["name"],
        "parents": {told["name"]: sha256_file(artifact.folder / "manifest.json")},
        "command": command,
        "data": told["data"],
        "mask_seen": told["mask_seen"],
        "seen_step": config.seen_step,
        "catalogue": {"version": told["catalogue"]["version"], "items": told["catalogue"]["items"]},
        "models": [_told(model, config) for model in models],
        "versions": told["versions"],
    }


def _told(model: Served, config: TritonConfig) -> dict[str, Any]:
    return {
        "name": model.name,
        "variant": model.variant,
        "precision": model.precision,
        "backend": {".onnx": "onnxruntime", ".plan": "tensorrt", ".pt2": "torch_aoti"}[model.graph.suffix],
        "version": config.version,
        "graph": f"models/{model.name}/{config.version}/{model.file}",
        "config": f"models/{model.name}/config.pbtxt",
        "inputs": [each.as_document() for each in model.inputs],
        "outputs": [each.as_document() for each in model.outputs],
        "top_k": model.outputs[0].shape[1],
        "max_batch_size": model.max_batch_size,
        "items": model.items,
        "seen": model.seen,
        "gpu": model.gpu,
        "server_options": list(model.server_options),
        **model.built,
    }


def _write_texts(folder: Path, manifest: Mapping[str, Any], history: Sequence[str]) -> None:
    """The clients, and what tells people how to start."""
    import jinja2

    here = Path(__file__).parent
    for client in CLIENTS:
        shutil.copyfile(here / client, folder / client)
    template = (here / "README.md.jinja").read_text(encoding="utf-8")
    backends = {model["backend"] for model in manifest["models"]}
    options = sorted({option for model in manifest["models"] for option in model["server_options"]})
    text = jinja2.Template(template, keep_trailing_newline=True).render(
        **manifest,
        recpress=manifest["versions"].get("recpress", ""),
        history=",".join(history[:3]),
        gpu=any(model["gpu"] for model in manifest["models"]),
        options=options,
        has_onnx="onnxruntime" in backends,
        has_plan="tensorrt" in backends,
        has_pt2="torch_aoti" in backends,
    )
    write_text(folder / "README.md", text)
