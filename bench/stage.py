"""The stage `bench`: quality and speed of everything that is named, one report."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from recommender.errors import nearest
from recommender.stage import Bound, Context, Kind, Outputs, Shape, StageConfig

Positive = Annotated[int, Field(ge=1)]


class BenchConfig(StageConfig):
    """Compare recommenders with one another."""

    stage: Literal["bench"] = "bench"
    compare: tuple[str, ...] = Field(min_length=1, description="names to compare, in the order of the report")
    against: str | None = Field(
        None, description="the one that ratios refer to; null: the first of `compare`"
    )
    batch_sizes: tuple[Positive, ...] = Field(
        (1, 32, 256), min_length=1, description="users per call that are timed"
    )
    loads: tuple[Literal["full", "real"], ...] = Field(
        ("full", "real"),
        min_length=1,
        description="full: every history is max_length long; real: test users as they come",
    )
    rounds: int = Field(100, ge=1, description="timed calls per candidate, load and batch size, at most")
    warmup: int = Field(3, ge=1, description="calls before the timed ones")
    latency_seconds: float = Field(
        60,
        gt=0,
        description="time for all timed calls; shared out over loads and batch sizes, which then end early",
    )
    threads: int | None = Field(None, ge=1, description="threads of every candidate; null: all cores")
    k: int = Field(10, ge=1, description="items that a timed call returns")
    draws: int = Field(10_000, ge=100, description="bootstrap draws")
    samples: int = Field(4, ge=0, description="test users whose recommendations are shown by title")

    pools_seeds: ClassVar[bool] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("checkpoint", "artifact")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("compare", "batch_sizes", "loads"):
            values = getattr(self, name)
            twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
            if twice:
                raise ValueError(f"`{name}` names {', '.join(map(repr, twice))} twice")
        return self

    @property
    def consumes(self) -> tuple[str, ...]:
        """Everything that is compared."""
        return self.compare

    @property
    def reference(self) -> str:
        """The name that ratios refer to."""
        return self.against or self.compare[0]

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """`against` has to be one of those that are compared."""
        if self.reference in self.compare:
            return []
        return [
            ("against", f"{self.against!r} is not among `compare`{nearest(self.reference, self.compare)}")
        ]


def run(config: BenchConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Measure everything that is named; write the report and the cards of the artifacts."""
    from bench.session import measure_all

    return measure_all(config, inputs, context)
