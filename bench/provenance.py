"""Where candidates come from: what each was made from, and digests that tell one making from another.

Read from the records of a run (`stage.json`), and where there is none from the checkpoint or the manifest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.candidates import Candidate
from bench.report.parts import Provenance
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import folder_digest, read_json, sha256_file
from recommender.stage import Bound

Parents = Mapping[str, str]
"""Name -> digest by which a child knows its parent; empty where only the name is known."""

ROLES = ("of", "teacher")
"""Options of a stage that name what it was made from."""

SHOWN = 8
"""Digits that tell two things of one name apart."""


@dataclass
class _Seed:
    """What is known of one seed."""

    bounds: Mapping[str, Bound]
    digests: dict[str, str] = field(default_factory=dict)
    parents: dict[str, list[str]] = field(default_factory=dict)


def provenance(found: Sequence[Candidate], prepared: Prepared) -> Provenance:
    """Parents of every candidate, and of those in turn, with a digest per name and seed.

    The digest of a checkpoint is the fingerprint of the stage that made it, of an artifact that of its
    manifest, of a folder that no stage of a run made that of its files. Two things of one name, from runs of
    their own, are told apart by the first digits of their digests. Raises InputError for a record that is no
    JSON.
    """
    parents: dict[str, list[str]] = {}
    digests: dict[str, str] = {}
    for seed in dict.fromkeys(seed for each in found for seed in each.bounds):
        bounds = {each.bound.name: each.bounds[seed] for each in found if seed in each.bounds}
        known = _Seed(bounds)
        for bound in bounds.values():
            _add_bound(known, bound)
        for name, above in known.parents.items():
            parents[name] = list(dict.fromkeys([*parents.get(name, ()), *above]))
        digests |= {f"{name} (seed {seed})": digest for name, digest in known.digests.items()}
    return Provenance(data_digest=prepared.digest, parents=parents, digests=digests)


def _add_bound(known: _Seed, bound: Bound) -> None:
    """A candidate's name and everything above it."""
    if bound.name in known.digests:
        return
    stage = _record(bound.stage_folder)
    known.digests[bound.name] = _own_digest(bound, stage)
    above = _parents(stage) or _written_parents(bound)
    known.parents[bound.name] = [
        _add(known, name, digest, bound.stage_folder) for name, digest in above.items()
    ]


def _add(known: _Seed, name: str, digest: str, child: Path) -> str:
    """A parent as a child's record names it; gives the name that it goes by in the report."""
    if name in known.bounds and _is(known.bounds[name], digest):
        _add_bound(known, known.bounds[name])
        return name
    taken = name in known.bounds or known.digests.get(name, digest) != digest
    label = f"{name} ({digest[:SHOWN]})" if taken else name
    if label in known.parents:
        return label
    if digest:
        known.digests[label] = digest
    known.parents[label] = []
    if (folder := _made_by(digest, child)) is not None:
        above = _parents(_record(folder))
        known.parents[label] = [_add(known, other, mark, folder) for other, mark in above.items()]
    return label


def _is(bound: Bound, digest: str) -> bool:
    """Whether a digest in a child's record means this bound: its stage, or (if it was given) its files."""
    if not digest or _record(bound.stage_folder).get("fingerprint") == digest:
        return True
    return _files_digest(bound) == digest


def _own_digest(bound: Bound, stage: Mapping[str, Any]) -> str:
    if (bound.path / "manifest.json").is_file():
        return _files_digest(bound)
    fingerprint = stage.get("fingerprint")
    return str(fingerprint) if fingerprint else _files_digest(bound)


def _files_digest(bound: Bound) -> str:
    """Digest of what a folder holds; a manifest names all files of an artifact but its card."""
    manifest = bound.path / "manifest.json"
    return sha256_file(manifest) if manifest.is_file() else folder_digest(bound.path)


def _record(folder: Path) -> Mapping[str, Any]:
    """stage.json of a stage's folder; empty where there is none."""
    file = folder / "stage.json"
    stage = read_json(file) if file.is_file() else {}
    return stage if isinstance(stage, dict) else {}


def _parents(stage: Mapping[str, Any]) -> Parents:
    """Inputs that went into the stage's fingerprint; in a record without them, names in its options."""
    inputs = stage.get("parts", {}).get("inputs")
    if isinstance(inputs, dict):
        return {str(name): str(digest) for name, digest in inputs.items()}
    return _roles(stage.get("config", {}))


def _roles(options: object) -> Parents:
    known = options if isinstance(options, dict) else {}
    return {known[role]: "" for role in ROLES if isinstance(known.get(role), str)}


def _written_parents(bound: Bound) -> Parents:
    """What a checkpoint or an artifact says of itself; a name that is its own parent says nothing."""
    if (bound.path / "manifest.json").is_file():
        written = read_json(bound.path / "manifest.json").get("parents", {})
        found = {str(name): str(digest) for name, digest in written.items()}
    elif (bound.path / "config.json").is_file():
        found = dict(_roles(read_json(bound.path / "config.json").get("about", {})))
    else:
        found = {}
    return {name: digest for name, digest in found.items() if name != bound.name}


def _made_by(digest: str, child: Path) -> Path | None:
    """The folder of the stage with this fingerprint, in the run that the child's stage belongs to."""
    return (
        next((folder for folder in _stages(child) if _fingerprint(folder) == digest), None)
        if digest
        else None
    )


def _stages(stage: Path) -> Iterator[Path]:
    """Folders of all stages of a run, its variants' included."""
    run = stage.parent.parent
    if stage.parent.name != "stages":
        return
    top = run.parent.parent if run.parent.name == "variants" else run
    for pattern in ("stages/*/stage.json", "variants/*/stages/*/stage.json"):
        for file in sorted(top.glob(pattern)):
            if not file.parent.name.startswith("."):
                yield file.parent


def _fingerprint(folder: Path) -> str | None:
    """None for a record that is broken: an unfinished stage is nobody's parent."""
    try:
        return _record(folder).get("fingerprint")
    except InputError:
        return None
