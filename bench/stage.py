"""The stage `bench`: quality and speed of everything that is named, one report."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bench.config import CostSettings, OpenLoopSettings, RooflineSettings
from bench.providers import OrtDevice, missing
from recommender.errors import nearest
from recommender.stage import Bound, Context, Kind, Measures, Outputs, Shape, StageConfig
from recommender.ways import EAGER, Way

Positive = Annotated[int, Field(ge=1)]
DAY = 86_400.0


class BenchConfig(StageConfig):
    """Compare recommenders with one another."""

    stage: Literal["bench"] = "bench"
    as_: str | None = Field(None, alias="as", description="name of the report, for a `gate` that reads it")
    compare: tuple[str, ...] = Field(min_length=1, description="names to compare, in the order of the report")
    against: str | None = Field(
        None, description="the one that ratios refer to; null: the first of `compare`"
    )
    torch: tuple[Way, ...] = Field(
        (EAGER,),
        min_length=1,
        description="ways to run every checkpoint in torch, eager first; the others give a candidate "
        "NAME:WAY each. bf16, tf32: its products in that precision; compile: one compiled program per "
        "call; graphs: that through CUDA graphs (tf32 and graphs: on CUDA only)",
    )
    onnxruntime: tuple[OrtDevice, ...] = Field(
        (),
        description="where onnxruntime runs every ONNX variant of the artifacts: its provider for cpu, cuda, "
        "tensorrt (whole graphs only). Beyond the first each gives a candidate NAME:VARIANT@DEVICE. One that "
        "is missing ends the bench. []: on the device of the run, on the CPU where onnxruntime has no CUDA",
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
    in_a_row: int = Field(
        1,
        ge=1,
        description="calls that a candidate makes at each turn, of which the last is timed. 1: caches are as "
        "the others left them (a service that is seldom asked); 5 or more: as it leaves them itself (a busy "
        "one)",
    )
    warmup: int = Field(3, ge=1, description="calls before the timed ones")
    latency_seconds: float = Field(
        60,
        gt=0,
        description="time for all timed calls; shared out over loads and batch sizes, which then end early",
    )
    threads: int | None = Field(
        None, ge=1, description="threads of every candidate, pinned to as many cores; null: all cores"
    )
    aa: bool = Field(
        True, description="open the reference in a second process too, to see what no difference looks like"
    )
    energy: bool = Field(True, description="read the machine's energy counters, where it has any")
    open_loop: OpenLoopSettings | None = Field(
        None, description="requests at a rate: latency under load and the saturation point; null: none"
    )
    cost: CostSettings | None = Field(None, description="what the machine costs; null: no cost card")
    roofline: RooflineSettings | None = Field(
        None,
        description="where the time goes, against what the machine can do; {}: as it is; null: not measured",
    )
    open_timeout_seconds: float = Field(
        300, gt=0, le=DAY, description="for a candidate to open, and for each call that warms it up"
    )
    call_timeout_seconds: float = Field(
        60, gt=0, le=DAY, description="for each timed call; a candidate that takes longer counts as hung"
    )
    profiles: tuple[str, ...] = Field((), description="depth profiles to show in the report")
    users: int | None = Field(
        None, ge=1, description="test users that are ranked, drawn at random, the same for all; null: all"
    )
    k: int = Field(10, ge=1, description="items that a timed call returns")
    draws: int = Field(10_000, ge=100, description="bootstrap draws")
    samples: int = Field(4, ge=0, description="test users whose recommendations are shown by title")

    pools_seeds: ClassVar[bool] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("checkpoint", "artifact", "profile")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("compare", "torch", "onnxruntime", "batch_sizes", "loads", "profiles"):
            values = getattr(self, name)
            twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
            if twice:
                raise ValueError(f"`{name}` names {', '.join(map(repr, twice))} twice")
        if self.torch[0] != EAGER:
            raise ValueError("`torch` has to begin with eager, which the plain name stands for")
        return self

    @property
    def consumes(self) -> tuple[str, ...]:
        """Everything that is compared, and the profiles."""
        return (*self.compare, *self.profiles)

    @property
    def produces(self) -> str | None:
        """The report, where it is given a name."""
        return self.as_

    def shape(self, known: Mapping[str, Shape]) -> Shape | None:
        """A report of this comparison."""
        measures = Measures(self.compare, self.reference, self.loads, self.batch_sizes, self.aa)
        return Shape("report", measures=measures)

    @property
    def reference(self) -> str:
        """The name that ratios refer to."""
        return self.against or self.compare[0]

    def lacking(self) -> str | None:
        """That onnxruntime has no provider which is asked for."""
        found = missing(self.onnxruntime)
        return None if found is None else ": ".join(found)

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """`against` has to be one of those that are compared; profiles belong to `profiles` alone."""
        found: list[tuple[str, str]] = []
        for field in ("compare", "profiles"):
            for place, name in enumerate(getattr(self, field)):
                kind = known[name].kind if name in known else None
                if kind is not None and (kind == "profile") != (field == "profiles"):
                    wanted = "a depth profile" if field == "profiles" else "something that recommends"
                    found.append((f"{field}.{place}", f"{name!r} is of kind {kind}, not {wanted}"))
        if self.reference not in self.compare:
            near = nearest(self.reference, self.compare)
            found.append(("against", f"{self.against!r} is not among `compare`{near}"))
        return found


def run(config: BenchConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Measure everything that is named; write the report and the cards of the artifacts."""
    from bench.session import measure_all

    return measure_all(config, inputs, context)
