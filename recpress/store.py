"""The finished stages of a run folder: found by fingerprint, trusted only while their files are whole."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recommender.errors import InputError
from recommender.files import read_json, replace_folder, sha256_file
from recommender.stage import Bound
from recpress.fingerprint import changes
from recpress.given import bind
from recpress.steps import Step

SCHEMA = 1
MANIFESTS = ("manifest.json", "repository.json")
"""Of an artifact, of a model repository."""
REPORTS = ("report.json", "report.md", "report.html")


@dataclass(frozen=True)
class Finished:
    """One finished stage: its folder and what its stage.json says."""

    folder: Path
    document: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What its result hangs on."""
        return str(self.document["fingerprint"])

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return float(self.document["seconds"])

    def damage(self, run: Path) -> str | None:
        """What of the stage's files is missing or cut, or None."""
        for name, size in self.document["files"].items():
            file = self.folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
        artifact = self.document.get("artifact")
        if artifact is None:
            return None
        folder = run / artifact["path"]
        manifest = folder / artifact.get("mark", MANIFESTS[0])
        if not manifest.is_file() or sha256_file(manifest) != artifact["manifest"]:
            return f"{artifact['path']} is missing or was replaced"
        for name, entry in read_json(manifest).get("files", {}).items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != entry["size_bytes"]:
                return f"{artifact['path']}/{name} is missing or cut"
        return None

    def bound(self, name: str, run: Path) -> Bound:
        """What the stage's name stands for."""
        artifact = self.document.get("artifact")
        inside = [self.folder / kind for kind in ("checkpoint", "profile")]
        made = next((folder for folder in inside if folder.is_dir()), self.folder)  # itself, of a report
        return bind(name, made if artifact is None else run / artifact["path"], self.folder)


class Store:
    """What is finished in a run folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._found = {found.fingerprint: found for found in _scan(run) if found.damage(run) is None}

    def find(self, step: Step) -> Finished | None:
        """A finished, whole stage that stands for the step, wherever in the run it was made."""
        return self._found.get(step.fingerprint) if step.config.keeps else None

    def add(self, folder: Path) -> Finished:
        """Take up a stage that has just been finished."""
        found = Finished(folder, read_json(folder / "stage.json"))
        self._found = {key: other for key, other in self._found.items() if other.folder != folder}
        self._found[found.fingerprint] = found
        return found

    def earlier(self, step: Step) -> Finished | None:
        """An earlier run of the same stage on the same data, whatever else changed: it tells the time."""
        old = _read(self.run / step.folder)
        same = old is not None and all(old.document["parts"][k] == step.parts[k] for k in ("config", "data"))
        return old if same else None

    def why_not(self, step: Step) -> str:
        """Why a step that is not finished must run."""
        old = _read(self.run / step.folder)
        if old is None:
            return "not run yet"
        if old.fingerprint == step.fingerprint:
            return old.damage(self.run) or ("not run yet" if step.config.keeps else "decided anew every time")
        return "; ".join(changes(old.document["parts"], step.parts)) or "its record changed"


def _scan(run: Path) -> Iterator[Finished]:
    for pattern in ("stages/*/stage.json", "variants/*/stages/*/stage.json"):
        for file in sorted(run.glob(pattern)):
            found = _read(file.parent)
            if found is not None and not file.parent.name.startswith("."):
                yield found


def _read(folder: Path) -> Finished | None:
    """A finished stage; None where there is none, or its record is not readable (then it runs again)."""
    try:
        document = read_json(folder / "stage.json")
    except InputError:
        return None
    whole = isinstance(document, dict) and document.get("schema_version") == SCHEMA
    return Finished(folder, document) if whole else None


def seal(folder: Path, step: Step, run: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Move the artifact or repository out of a stage's temporary folder; make the record of what is left.

    The record names the manifest's digest, so a kill between the two renames shows as damage, not as success.
    """
    artifact: dict[str, Any] | None = None
    if (folder / "artifact").is_dir():
        target = run / step.artifact
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(folder / "artifact", target)
        mark = next(name for name in MANIFESTS if (target / name).is_file())
        artifact = {"path": step.artifact.as_posix(), "mark": mark, "manifest": sha256_file(target / mark)}
    files = {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return {
        "schema_version": SCHEMA,
        "stage": step.config.stage,
        "name": step.config.produces,
        "variant": step.variant,
        "seeds": list(step.seeds),
        "config": step.parts["config"],
        "fingerprint": step.fingerprint,
        "parts": dict(step.parts),
        **facts,
        "artifact": artifact,
        "files": files,
    }


def sweep(run: Path) -> None:
    """Remove what a killed run left half-written; the caller holds the lock."""
    for pattern in ("stages", "artifacts", "variants/*/stages", "variants/*/artifacts"):
        for folder in run.glob(pattern):
            for left in folder.glob(".*"):
                shutil.rmtree(left, ignore_errors=True)
    for pattern in (".*.tmp", "variants/*/.*.tmp"):
        for left in run.glob(pattern):
            left.unlink()


def wipe(run: Path) -> None:
    """Remove everything that a run writes; nothing else that may lie in the folder."""
    for name in ("stages", "artifacts", "variants", ".scratch"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in (*REPORTS, "recipe.yaml"):
        (run / name).unlink(missing_ok=True)


def publish(run: Path, variant: str | None, stage: Path) -> None:
    """Copy a stage's reports, if it wrote any, to the top of the run (of the variant), each in one step."""
    for name in REPORTS:
        if (stage / name).is_file():
            target = report_folder(run, variant)
            target.mkdir(parents=True, exist_ok=True)
            temporary = target / f".{name}.tmp"
            shutil.copyfile(stage / name, temporary)
            os.replace(temporary, target / name)


def drop_old_reports(run: Path, stages: Iterable[Path], variants: Iterable[str]) -> None:
    """Remove reports at the top that no stage of this run wrote."""
    written = {file.name for stage in stages for file in stage.glob("report.*")}
    for name in set(REPORTS) - written:
        for variant in (None, *variants):
            (report_folder(run, variant) / name).unlink(missing_ok=True)


def report_folder(run: Path, variant: str | None) -> Path:
    """Where a variant's reports lie; None: the recipe's own."""
    return run / "variants" / variant if variant else run
