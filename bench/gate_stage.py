"""The stage `gate`: a recipe goes on only where the report of its bench allows it."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from bench.demand import Demand
from recommender.errors import GateError, nearest
from recommender.files import write_json
from recommender.stage import Bound, Context, Kind, Outputs, Shape, StageConfig


class GateConfig(Demand, StageConfig):
    """Refuse to go on unless the lower confidence bounds of a report hold."""

    stage: Literal["gate"] = "gate"
    of: str = Field(description="the bench that decides, by its `as`; or a run folder given in `inputs`")

    pools_seeds: ClassVar[bool] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("report",)

    @property
    def consumes(self) -> tuple[str, ...]:
        """The report."""
        return (self.of,)

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """What the bench can be seen not to measure, before anything runs."""
        measures = known[self.of].measures
        if measures is None:  # a report that exists already: read when its turn comes
            return []
        found = []
        for field in ("candidate", "against"):
            name = getattr(self, field).partition(":")[0]
            if name not in measures.compare:
                found.append(
                    (field, f"{self.of!r} does not compare {name!r}{nearest(name, measures.compare)}")
                )
            elif field == "against" and name != measures.against:
                found.append(
                    (field, f"{self.of!r} holds everything against {measures.against!r}, not {name!r}")
                )
        timed = self.min_speedup is not None or self.max_aa_floor is not None
        if timed and self.load != "open-loop":
            if self.load not in measures.loads:
                found.append(
                    ("load", f"{self.of!r} has no load {self.load!r}, only {', '.join(measures.loads)}")
                )
            if self.batch not in measures.batch_sizes:
                sizes = ", ".join(map(str, measures.batch_sizes))
                found.append(("batch", f"{self.of!r} times no batch of {self.batch}, only of {sizes}"))
        return found


def run(config: GateConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Decide by the report; the verdicts go to gate.json.

    Raises GateError where a demand does not hold, InputError where the report has no answer to it.
    """
    from bench.gate import decide, refusals
    from bench.report.files import read

    folder = inputs[config.of].path
    verdicts = decide(read(folder), config, where=str(folder / "report.json"))
    for verdict in verdicts:
        context.progress("note", {"text": f"{'holds' if verdict.holds else 'does not hold'}: {verdict}"})
    if reasons := refusals(verdicts):
        raise GateError(
            f"{config.candidate} may not go on: {'; '.join(reasons)}",
            where=f"gate of {config.of}",
            fix="make a better candidate, or measure more precisely (more users, rounds or seeds)",
        )
    documents = [verdict.as_document() for verdict in verdicts]
    write_json(context.folder / "gate.json", {"demand": _asked(config), "verdicts": documents})
    return Outputs(metrics={"verdicts": documents})


def _asked(config: GateConfig) -> dict[str, object]:
    return config.model_dump(include=set(Demand.model_fields), exclude_none=True)
