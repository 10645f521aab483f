"""Is an artifact what it was when it was made? Digests first, then its golden requests."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import OUTSIDE_DIGESTS, open_artifact
from export.runtime import Artifact, ArtifactError, Recommendation, read_manifest
from export.variants import COMPILED, ENGINE, HALF, is_lossy
from export.versions import version_folders
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.lock import LOCK

SCORE_TOLERANCE = 1e-3
"""Per unit of the largest score: another CPU or another onnxruntime may differ by less than this."""
HALF_TOLERANCE = 5e-2
"""The same where numbers are rounded to half precision: an answer, if not the very one."""
EIGHT_BIT_TOLERANCE = 2e-1
"""The same of engines whose products read 8 bits (int8, fp8)."""


@dataclass(frozen=True)
class Verified:
    """What was checked and found right."""

    files: tuple[str, ...]
    unlisted: tuple[str, ...]  # files that no digest covers; card.md, bytecode, lock aside
    requests: int
    max_score_difference: float


def verify_artifact(folder: Path, *, variant: str | None = None, threads: int | None = 1) -> Verified:
    """Check every digest, then replay the golden requests with a variant (None: the default one).

    Of an engine for shorter histories than the model reads, those requests that it reads whole.
    Raises InputError when a file is missing, truncated or altered, when there is no such variant, it does not
    run here or ranks otherwise by design, GateError when the answers differ here.
    """
    artifact = open_artifact(folder, variant=variant, threads=threads)
    name = artifact.variant
    golden = read_json(folder / artifact.manifest["catalogue"]["folder"] / "golden.json")
    tolerance = tolerance_of(name, golden["variant"])
    listed = set(artifact.manifest["files"])
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    known = listed | _of_versions(folder) | {*OUTSIDE_DIGESTS, LOCK}
    requests, worst = replay(artifact, _read_whole(artifact, golden), tolerance)
    return Verified(
        files=tuple(sorted(listed)),
        unlisted=tuple(sorted(present - known)),
        requests=requests,
        max_score_difference=worst,
    )


def tolerance_of(name: str, answered: str) -> float:
    """How far scores of a variant may be from golden ones, per unit of the largest.

    `answered`: the variant that the golden answers are of. Raises InputError for a variant whose answers are
    not those, only rounded.
    """
    if not is_lossy(name) or name == answered:
        return SCORE_TOLERANCE
    if name in ENGINE and ENGINE[name] in ("int8", "fp8"):
        return EIGHT_BIT_TOLERANCE
    if name in HALF or name in ENGINE or (name in COMPILED and COMPILED[name].half):
        return HALF_TOLERANCE
    raise InputError(
        f"the golden requests hold answers of {answered}, and {name} ranks otherwise by design",
        where="variant",
        fix="verify the default variant; the quality of this one is measured by export and bench",
    )


def _read_whole(artifact: Artifact, golden: dict[str, Any]) -> dict[str, Any]:
    """The golden requests that a variant reads whole; all of one that reads as much as the model."""
    if artifact.max_length >= artifact.manifest["variants"][0]["max_length"]:
        return golden
    fitting = [each for each in golden["requests"] if len(each["history"]) <= artifact.max_length]
    return {**golden, "requests": fitting}  # the first has one item, so there is one at least


def _of_versions(folder: Path) -> set[str]:
    """What the versions of the catalogue list, in use or not; nothing of one with a broken manifest."""
    known: set[str] = set()
    for version, place in version_folders(folder).items():
        with suppress(ArtifactError):
            known |= {f"{place.name}/manifest.json", *read_manifest(folder, version)["files"]}
    return known


def replay(
    artifact: Artifact, golden: dict[str, Any], tolerance: float = SCORE_TOLERANCE
) -> tuple[int, float]:
    """(requests, largest score difference at equal places) of the golden requests.

    Raises GateError where a score, by place or by item, is off by more than the tolerance allows.
    """
    worst = 0.0
    for number, request in enumerate(golden["requests"]):
        try:
            answer = artifact.recommend(request["history"], golden["k"])
        except ArtifactError as error:
            raise InputError(f"golden request {number}: {error}", where="golden.json") from error
        difference, scale = _difference(request, answer)
        if difference > tolerance * scale:
            raise GateError(
                f"golden request {number} is off by {difference:.2g} (allowed {tolerance * scale:.2g})",
                where=str(artifact.folder),
                fix="run it with the onnxruntime (or torch) that its manifest names, or export it again on "
                "this machine",
            )
        worst = max(worst, difference)
    return len(golden["requests"]), worst


def _difference(request: dict[str, Any], answer: list[Recommendation]) -> tuple[float, float]:
    """(largest score difference, largest score); an item new to the list is held against its last one."""
    expected, got = np.array(request["scores"]), np.array([item["score"] for item in answer])
    scale = float(np.abs(expected).max(initial=0.0))
    if len(expected) != len(got):
        return float("inf"), scale
    if not len(expected):
        return 0.0, scale
    by_item = dict(zip(request["items"], request["scores"], strict=True))
    known = np.array([by_item.get(item["item_id"], expected[-1]) for item in answer])
    return float(max(np.abs(got - expected).max(), np.abs(got - known).max())), scale
