"""The stage `gate`: a recipe goes on only where the report of its bench allows it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from bench.demand import Demand
from recommender.errors import GateError, nearest
from recommender.files import write_json
from recommender.stage import Bound, Context, Kind, Measures, Outputs, Shape, StageConfig


class GateConfig(Demand, StageConfig):
    """Refuse to go on unless the lower confidence bounds of a report hold."""

    stage: Literal["gate"] = "gate"
    of: str = Field(description="the bench that decides, by its `as`; or a run folder given in `inputs`")

    pools_seeds: ClassVar[bool] = True
    keeps: ClassVar[bool] = False
    accepts: ClassVar[tuple[Kind, ...]] = ("report",)

    @property
    def consumes(self) -> tuple[str, ...]:
        """The report."""
        return (self.of,)

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """What the bench can be seen not to measure, before anything runs."""
        measures = known[self.of].measures
        if measures is None:
            return []
        return [*self._unknown_names(measures), *self._not_ranked(measures), *self._not_timed(measures)]

    def _unknown_names(self, measures: Measures) -> Iterator[tuple[str, str]]:
        for field in ("candidate", "against"):
            name = getattr(self, field).partition(":")[0]
            if name not in measures.compare:
                yield field, f"{self.of!r} does not compare {name!r}{nearest(name, measures.compare)}"
            elif field == "against" and name != measures.against:
                yield field, f"{self.of!r} holds everything against {measures.against!r}, not {name!r}"

    def _not_ranked(self, measures: Measures) -> Iterator[tuple[str, str]]:
        if self.min_quality is None or measures.ks is None:
            return
        metrics = [*(f"{name}@{k}" for k in measures.ks for name in ("hr", "ndcg")), "mrr"]
        if self.metric not in metrics:
            yield "metric", f"{self.of!r} does not measure {self.metric!r}{nearest(self.metric, metrics)}"

    def _not_timed(self, measures: Measures) -> Iterator[tuple[str, str]]:
        if self.max_aa_floor is not None and not measures.aa:
            yield "max_aa_floor", f"{self.of!r} measures no A/A floor: it needs `aa: true`"
        if self.min_speedup is None and self.max_aa_floor is None:
            return
        if self.load not in measures.loads:
            loads = ", ".join(measures.loads) or "none"
            yield "load", f"{self.of!r} has no load {self.load!r}, only {loads}"
        if self.batch not in measures.batch_sizes:
            sizes = ", ".join(map(str, measures.batch_sizes)) or "none"
            yield "batch", f"{self.of!r} times no batch of {self.batch}, only of {sizes}"


def run(config: GateConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Decide by the report; the verdicts go to gate.json.

    Where seeds have reports of their own, every one of them decides. Raises GateError where a demand does not
    hold, InputError where a report has no answer to it.
    """
    from bench.gate import decide
    from bench.report.files import read

    reports: dict[Path, int] = {}  # each with the first seed that it stands for
    for seed, bounds in (context.by_seed or {context.seed: inputs}).items():
        reports.setdefault(bounds[config.of].path, seed)
    verdicts = [
        (f"seed {seed}: " if len(reports) > 1 else "", verdict)
        for folder, seed in reports.items()
        for verdict in decide(read(folder), config, where=str(folder / "report.json"))
    ]
    for lead, verdict in verdicts:
        holds = "holds" if verdict.holds else "does not hold"
        context.progress("note", {"text": f"{holds}: {lead}{verdict}"})
    if reasons := [f"{lead}{verdict}" for lead, verdict in verdicts if not verdict.holds]:
        raise GateError(
            f"{config.candidate} may not go on: {'; '.join(reasons)}",
            where=f"gate of {config.of}",
            fix="make a better candidate, or measure more precisely (more users, rounds or seeds)",
        )
    documents = [verdict.as_document() | {"what": f"{lead}{verdict.what}"} for lead, verdict in verdicts]
    write_json(context.folder / "gate.json", {"demand": _asked(config), "verdicts": documents})
    return Outputs(metrics={"verdicts": documents})


def _asked(config: GateConfig) -> dict[str, object]:
    return config.model_dump(include=set(Demand.model_fields), exclude_none=True)
