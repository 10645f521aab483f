"""Measure every variant of a fresh artifact, and let through what may be shipped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.ann import gate_recall, measure_recall
from export.measure import measure_parity, samples
from export.parity import ParityConfig, gate
from export.runtime import Artifact, ArtifactError
from export.speed import speedups
from export.variants import CANONICAL, HALF, is_lossy
from recommender.errors import GateError, StageError
from recommender.scoring import HistoryArrays
from recommender.stage import Context

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender


def measure_variants(
    model: "SequentialRecommender",
    folder: Path,
    context: Context,
    limits: ParityConfig,
    *,
    named: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """{variant: {"parity": ..., "recall": ..., "speedup": ..., "failed": why}} of all of an artifact.

    Recall is that of an approximate index; speeds are measured of those that rank like the model and run
    here. Raises GateError where the canonical graph or one of `named` does not pass, or an index finds too
    little.
    """
    judge = _Judge(model, folder, context, limits)
    as_is = judge.histories()
    measured: dict[str, dict[str, Any]] = {}
    served: dict[str, Artifact] = {}
    for entry in Artifact(folder, verify=False).manifest["variants"]:
        name = str(entry["name"])
        found = measured.setdefault(name, judge.rounded(entry) if name in HALF else {})
        if not (entry.get("on_cpu", True) or "device" in entry):
            continue
        try:
            opened = Artifact(folder, variant=name, threads=context.threads, verify=False)
        except ArtifactError as error:
            _leave_out(name, named, found, error)
            continue
        if "index" in entry:
            found["recall"] = measure_recall(opened, as_is, histories="test histories")
            gate_recall(found["recall"], entry)
        try:
            found["parity_here" if name in HALF else "parity"] = judge.parity(name, opened)
            if entry.get("on_cpu", True):  # a GPU is not raced against a CPU
                served[name] = opened
        except (GateError, ArtifactError) as error:
            _leave_out(name, named, found, error)
    for name, ratios in speedups(served, as_is, reference=CANONICAL).items():
        measured[name]["speedup"] = ratios
    return measured


def _leave_out(name: str, named: Sequence[str], found: dict[str, Any], error: Exception) -> None:
    """Note why a variant is left out; one that has to be there fails the stage instead."""
    if name != CANONICAL and name not in named:
        found["failed"] = str(error)
        return
    if isinstance(error, ArtifactError):
        raise StageError(f"the variant {name} cannot answer: {error}", where="export") from error
    raise error


class _Judge(NamedTuple):
    """What every variant of an artifact is held against."""

    model: "SequentialRecommender"
    folder: Path
    context: Context
    limits: ParityConfig

    def histories(self) -> HistoryArrays:
        """Histories of test users as they are."""
        context, evaluation = self.context, self.context.evaluation
        *_, as_is = samples(
            context.prepared, context.split, self.model.max_length, self.limits.users,
            mask_seen=evaluation.mask_seen, seed=context.seed,
        )  # fmt: skip
        return as_is.histories

    def parity(self, name: str, artifact: Artifact, how: str = "") -> dict[str, Any]:
        """The numbers of a variant. Raises GateError where they do not hold."""
        context = self.context
        found = measure_parity(
            self.model, artifact, context.prepared, context.split, self.limits,
            mask_seen=context.evaluation.mask_seen, seed=context.seed, lossy=is_lossy(name),
        )  # fmt: skip
        where = f"export.parity of {name}{how} (worst at {found['worst']})"
        gate(found, self.limits, lossy=is_lossy(name), where=where)
        return found

    def rounded(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What a half variant comes to in a runtime that computes in its type, and how that was found."""
        from export.half_check import CHECKED, open_rounded

        name = str(entry["name"])
        opened = open_rounded(self.folder, entry, self.context.scratch, threads=self.context.threads)
        return {"parity": self.parity(name, opened, ", rounded"), "checked": CHECKED.format(name)}
