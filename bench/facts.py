"""What the folders of a candidate say of it: sizes, parameters, parent, training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from bench.candidates import Candidate, broken, manifest_entry
from bench.report.parts import Zeros
from bench.report.schema import Training
from recommender.checkpoint import read_info
from recommender.files import read_json
from recommender.sparsity import noted
from recommender.stage import Bound
from recommender.ways import WAYS

PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Facts:
    """What is known of a candidate without running it; unknown is None."""

    of: str | None = None
    precision: str | None = None
    parameters: int | None = None
    body_parameters: int | None = None
    size_bytes: int | None = None
    zeros: Zeros | None = None
    train: Training | None = None


def facts(candidate: Candidate) -> Facts:
    """Sizes, parameters, parent and training cost, as far as the folders tell."""
    stages = [_stage(bound) for bound in candidate.bounds.values()]
    parent = stages[0].get("config", {}).get("of")
    train = training([stage.get("metrics", {}) for stage in stages])
    if candidate.bound.kind == "checkpoint":
        info = read_info(candidate.bound.path)
        return Facts(
            of=parent,
            precision=_run_precision(candidate),
            parameters=info.parameters,
            body_parameters=info.body_parameters,
            size_bytes=info.size_bytes,
            zeros=zeros(info.about, candidate, info.parameters, info.body_parameters),
            train=train,
        )
    return _artifact_facts(candidate, parent)


def zeros(
    noted_in: Mapping[str, Any], candidate: Candidate, parameters: int | None, body_parameters: int | None
) -> Zeros | None:
    """Pruned weights by the note in a checkpoint's `about` or a manifest; None where there is none.

    Raises InputError for a broken note.
    """
    note = noted(noted_in, str(candidate.bound.path))
    if note is None:
        return None
    return Zeros(
        pattern=note.pattern,
        of_body_matrices=note.share,
        of_body_parameters=note.zeros / body_parameters if body_parameters else None,
        of_everything=note.zeros / parameters if parameters else None,
    )


def training(metrics: Sequence[Mapping[str, Any]]) -> Training | None:
    """Mean over seeds of what training cost; None for a stage that trains nothing."""
    trained = [each for each in metrics if "epochs" in each]
    if not trained:
        return None
    fields = ("seconds", "epochs", "seconds_per_epoch")
    return Training(
        **{
            name: float(np.mean([each[name] for each in trained]))
            for name in fields
            if all(each.get(name) is not None for each in trained)
        }
    )


def stored_precision(folder: Path) -> str | None:
    """Float types of the weights below a checkpoint folder: "fp32", "bf16 + fp32"; None without weights."""
    types = set()
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="numpy") as store:
            types |= {store.get_slice(name).get_dtype() for name in store.keys()}  # noqa: SIM118 - not a dict
    return " + ".join(sorted(PRECISIONS[each] for each in types if each in PRECISIONS)) or None


def _run_precision(candidate: Candidate) -> str | None:
    """What a checkpoint's products compute in: as its weights are stored, or as the way says."""
    named = {str(name): way.precision for name, way in WAYS.items() if way.precision != "fp32"}
    return named.get(candidate.way or "") or stored_precision(candidate.bound.path)


def _stage(bound: Bound) -> Mapping[str, Any]:
    """stage.json of the stage that made it; empty for a checkpoint that no stage of a run made."""
    file = bound.stage_folder / "stage.json"
    if not file.exists():
        return {}
    stage = read_json(file)
    return stage if isinstance(stage, dict) else {}


def _artifact_facts(candidate: Candidate, parent: str | None) -> Facts:
    """What the manifest says of the variant; its size is that of its graphs and their weights."""
    manifest, entry = manifest_entry(candidate)
    try:
        size = sum(int(manifest["files"][name]["size_bytes"]) for name in set(entry["files"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken(candidate.bound.path, error) from error
    return Facts(
        of=parent,
        precision=entry.get("precision"),
        parameters=entry.get("parameters"),
        body_parameters=entry.get("body_parameters"),
        size_bytes=size,
        zeros=zeros(manifest, candidate, entry.get("parameters"), entry.get("body_parameters")),
    )
