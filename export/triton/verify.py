"""Is a repository what it was when it was made, does its configuration fit its graphs, and do they, or a
server that loaded them, still answer alike?
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from export.triton.golden import Answer, difference, padded
from export.triton.here import NotHereError, Run, open_here
from export.triton.models import FILES, TYPES
from export.triton.pbtxt import Message, read_pbtxt
from export.triton.protocol import Server
from export.triton.repository import MARK, SCHEMA_VERSION
from export.triton.server import open_server
from recommender.errors import GateError, InputError
from recommender.files import read_json, sha256_file

ONNX_TYPES: dict[int, str] = {
    TensorProto.INT64: "INT64",
    TensorProto.INT32: "INT32",
    TensorProto.FLOAT: "FP32",
}


@dataclass(frozen=True)
class VerifiedRepository:
    """What was checked and found right."""

    files: tuple[str, ...]
    unlisted: tuple[str, ...]  # files that no digest covers
    models: tuple[str, ...]
    replayed: tuple[str, ...]  # models that answered the golden requests
    not_replayed: Mapping[str, str]  # models that nothing on this machine runs, and why
    requests: int
    max_score_difference: float  # per unit of the largest score of a list
    url: str | None


def verify_repository(folder: Path, *, url: str | None = None) -> VerifiedRepository:
    """Check digests and configurations, then replay the golden requests: here, or at the server at `url`.

    `url`: http(s)://HOST[:PORT] or grpc://HOST:PORT. Raises InputError when a file is missing or altered, a
    configuration does not fit its graph, or the address is none; GateError when a graph answers otherwise, or
    the server is down, serves other models, or answers otherwise.
    """
    manifest = read_repository(folder)
    files, unlisted = _check_files(folder, manifest)
    for model in manifest["models"]:
        check_config(folder, model)
    golden, models = read_json(folder / "golden.json"), manifest["models"]
    runs, not_replayed = _here(folder, models) if url is None else (_of_server(open_server(url), models), {})
    where = url or str(folder)
    worst = [replay(model, golden, manifest["seen_step"], runs[model["name"]], where)
             for model in models if model["name"] in runs]  # fmt: skip
    names = [str(model["name"]) for model in models]
    return VerifiedRepository(
        files=files,
        unlisted=unlisted,
        models=tuple(names),
        replayed=tuple(name for name in names if name in runs),
        not_replayed=not_replayed,
        requests=len(golden["histories"]),
        max_score_difference=max(worst, default=0.0),
        url=url,
    )


def read_repository(folder: Path) -> dict[str, Any]:
    """The manifest. Raises InputError when it is missing, broken, or of another form."""
    manifest = read_json(folder / MARK)
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"has schema_version {manifest['schema_version']}, this recpress reads {SCHEMA_VERSION}",
                where=str(folder / MARK), fix="export the repository again",
            )  # fmt: skip
        for model in manifest["models"]:
            _ = model["name"], model["version"], model["graph"], model["config"], model["inputs"][0]["name"]
            _ = model["outputs"][0]["name"], model["items"] + 0, model["seen"], model["max_batch_size"]
            _ = model["gpu"], model["top_k"] + 0, FILES[Path(model["graph"]).suffix]
            _ = [model.get(key, {}).items() for key in ("engine", "compiled")]
        for entry in manifest["files"].values():
            _ = entry["size_bytes"], entry["sha256"]
        _ = manifest["seen_step"] + 0
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"is broken ({error!r})", where=str(folder / MARK), fix="export it again") from error
    found: dict[str, Any] = manifest
    return found


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    listed: Mapping[str, Any] = manifest["files"]
    faults = []
    for name, entry in listed.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{name} lies outside of the repository")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != entry["size_bytes"] or sha256_file(path) != entry["sha256"]:
            faults.append(f"{name} was altered")
    needed = {"golden.json", *(model[key] for model in manifest["models"] for key in ("graph", "config"))}
    faults += [f"the manifest has no digest of {name}" for name in sorted(needed - set(listed))]
    if faults:
        raise InputError("; ".join(faults), where=str(folder), fix="copy or export the repository again")
    present = {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"
    }
    return tuple(sorted(listed)), tuple(sorted(present - set(listed) - {MARK}))


def check_config(folder: Path, model: Mapping[str, Any]) -> None:
    """Raise InputError unless config.pbtxt says of a model what its manifest, and its graph, say."""
    file = folder / model["config"]
    config = read_pbtxt(file.read_text(encoding="utf-8"), str(file))
    faults = list(_config_faults(config, model))
    if model["graph"].endswith(".onnx"):
        faults += _graph_faults(folder / model["graph"], model)
    if faults:
        raise InputError("; ".join(faults), where=str(file), fix="export the repository again")


def _config_faults(config: Message, model: Mapping[str, Any]) -> Iterator[str]:
    if config.get("name") != [model["name"]]:
        yield f"name is {config.get('name')}, and the folder is {model['name']!r}"
    backend = config.get("backend", config.get("platform"))
    if backend != [model["backend"]]:
        yield f"the backend is {backend}, and the graph is for {model['backend']}"
    batched = model["max_batch_size"] > 0
    if config.get("max_batch_size", [0]) != [model["max_batch_size"]]:
        yield f"max_batch_size is {config.get('max_batch_size')}, not {model['max_batch_size']}"
    for field, key in (("input", "inputs"), ("output", "outputs")):
        told = {
            entry["name"][0]: (entry["data_type"][0].name, entry.get("dims", []))
            for entry in config.get(field, [])
        }
        wanted = {
            entry["name"]: (TYPES[entry["type"]], entry["shape"][1:] if batched else entry["shape"])
            for entry in model[key]
        }
        for name in sorted({*told, *wanted}):
            if told.get(name) != wanted.get(name):
                yield f"{field} {name!r} is {_words(told.get(name))}, not {_words(wanted.get(name))}"


def _words(told: tuple[str, Sequence[int]] | None) -> str:
    return "missing" if told is None else f"{told[0]} {list(told[1])}"


def _graph_faults(graph: Path, model: Mapping[str, Any]) -> Iterator[str]:
    """Where the manifest says another thing of inputs and outputs than the ONNX file, which is not run."""
    try:
        told = onnx.load(graph, load_external_data=False).graph
    except DecodeError as error:
        raise InputError(
            f"is no ONNX ({error})", where=str(graph), fix="export the repository again"
        ) from error
    stored = {each.name for each in told.initializer}
    given = [value for value in told.input if value.name not in stored]
    for kind, values, key in (("input", given, "inputs"), ("output", told.output, "outputs")):
        has = dict(map(_told, values))
        wanted = {entry["name"]: (entry["type"], entry["shape"]) for entry in model[key]}
        for name in sorted({*has, *wanted}):
            if has.get(name) != wanted.get(name):
                here, configured = _words(has.get(name)), _words(wanted.get(name))
                yield f"{kind} {name!r} of the graph is {here}, but {configured} is configured"


def _told(value: onnx.ValueInfoProto) -> tuple[str, tuple[str, list[int]]]:
    """Name, type and shape of an input or output; -1: any size."""
    tensor = value.type.tensor_type
    kind = ONNX_TYPES.get(tensor.elem_type) or TensorProto.DataType.Name(tensor.elem_type)
    return value.name, (kind, [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim])


def _here(folder: Path, models: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Run], dict[str, str]]:
    """Models that run on this machine; and why others do not."""
    runs, reasons = {}, {}
    for model in models:
        try:
            runs[model["name"]] = open_here(folder, model)
        except NotHereError as error:
            reasons[model["name"]] = str(error)
    return runs, reasons


def _of_server(server: Server, models: Iterable[Mapping[str, Any]]) -> dict[str, Run]:
    """Models of a server, which serves what the repository says. Raises GateError where it does not."""
    server.check_ready()
    runs: dict[str, Run] = {}
    for model in models:
        told = server.metadata(model["name"], model["version"])
        faults = list(_metadata_faults(told, model))
        if faults:
            raise GateError(
                f"model {model['name']!r}: {'; '.join(faults)}", where=server.url,
                fix="load this repository, or verify the one that the server has",
            )  # fmt: skip

        def run(
            inputs: Mapping[str, NDArray[np.int64]],
            name: str = model["name"],
            version: int = model["version"],
        ) -> Mapping[str, NDArray[Any]]:
            return server.infer(name, version, inputs)

        runs[model["name"]] = run
    return runs


def _metadata_faults(told: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    versions = [str(each) for each in told.get("versions") or ()]
    if versions and str(model["version"]) not in versions:
        yield f"the server has version {', '.join(versions)}, not {model['version']}"
    for kind in ("inputs", "outputs"):
        has = {
            entry.get("name"): (entry.get("datatype"), [int(size) for size in entry.get("shape") or ()])
            for entry in told.get(kind) or ()
        }
        for entry in model[kind]:
            wanted = (entry["type"], entry["shape"])
            if has.get(entry["name"]) != wanted:
                here = _words(has.get(entry["name"]))
                yield f"{kind[:-1]} {entry['name']!r} is {here}, not {_words(wanted)}"


def replay(model: Mapping[str, Any], golden: Mapping[str, Any], step: int, run: Run, where: str) -> float:
    """The largest difference of a score per unit of the largest, over all golden requests of a model.

    Raises GateError where an answer is off by more than is allowed, in scores or, beyond near ties, in ranks.
    """
    answers, rows = golden["answers"][model["name"]], golden["rows"]
    worst = 0.0
    for number, (history, expected) in enumerate(zip(rows, answers["lists"], strict=True)):
        given = padded(history, golden["mask_seen"], model["items"], model["seen"], step)
        inputs = dict(zip([entry["name"] for entry in model["inputs"]], given, strict=True))
        told = run(inputs)
        names = [entry["name"] for entry in model["outputs"]]
        missing = [name for name in names if name not in told]
        if missing:
            raise GateError(f"{model['name']!r} answers without {', '.join(missing)}", where=where)
        best, scores = (np.asarray(told[name]).reshape(-1) for name in names)
        if len(best) != len(scores) or len(best) != model["top_k"]:
            raise GateError(
                f"{model['name']!r} answers {len(best)} rows and {len(scores)} scores, not {model['top_k']}",
                where=where,
            )
        off = difference(expected, Answer(best, scores.astype(np.float32)))
        if not off <= answers["tolerance"]:
            raise GateError(
                f"golden request {number} to {model['name']!r} is off by {off:.2g} of the largest score "
                f"(allowed {answers['tolerance']:g}): it ranks otherwise",
                where=where,
                fix="the server runs other weights, or another precision, than this repository holds",
            )
        worst = max(worst, off)
    return worst
