"""What decides whether a stage must run again: a fingerprint in parts, so that a changed one can be named."""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared
from recommender.files import digest_of
from recommender.stage import StageConfig
from recpress.stages import StageKind

GROUND = "recommender"


def parts_of(
    kind: StageKind,
    config: StageConfig,
    *,
    inputs: Mapping[str, str],
    prepared: Prepared,
    max_length: int,
    evaluation: EvaluationConfig,
    seed: int | tuple[int, ...],
    device: str,
) -> dict[str, Any]:
    """Everything that a stage's result hangs on; `inputs`: name -> fingerprint of what it stands for."""
    package = kind.run.split(".")[0]
    parts: dict[str, Any] = {
        "config": config.model_dump(mode="json", by_alias=True),
        "inputs": dict(inputs),
        "data": {"digest": prepared.digest, "max_length": max_length},
        "evaluation": evaluation.model_dump(mode="json"),
        "seed": seed if isinstance(seed, int) else list(seed),
        "code": {name: code_digest(name) for name in sorted({package, GROUND})},
        "versions": {name: version(name) for name in kind.packages},
    }
    if kind.measures:
        parts["device"] = device
    if tied := config.machine:
        parts["machine"] = dict(tied)
    return parts


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hex digest of the parts."""
    return digest_of(parts)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two fingerprints' parts."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    both = [(key, before.get(key), after.get(key)) for key in {**before, **after}]
    return [_words(key, was, now) for key, was, now in both if was != now]


@cache
def code_digest(package: str) -> str:
    """Digest of the source text of a package."""
    spec = importlib.util.find_spec(package)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    digest = hashlib.sha256()
    for root in folders:
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def version(distribution: str) -> str | None:
    """Version of an installed distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _leaves(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _words(key: str, before: Any, after: Any) -> str:
    section, _, rest = key.partition(".")
    match section:
        case "inputs":
            return f"input {rest!r} changed"
        case "code":
            return f"code of {rest} changed"
        case "versions":
            return f"{rest} {before} -> {after}"
        case "data" if rest == "digest":
            return "the data changed"
        case "config":
            return f"{rest}: {before} -> {after}"
    return f"{key}: {before} -> {after}"
