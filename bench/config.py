"""The options of the stage `bench` and its sections; a recipe is read with no more."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from bench.providers import OrtDevice, missing
from recommender.data.config import Section
from recommender.errors import nearest
from recommender.stage import Kind, Measures, Shape, StageConfig
from recommender.ways import EAGER, Way

Positive = Annotated[int, Field(ge=1)]
DAY = 86_400.0


class OpenLoopSettings(Section):
    """Load at a rate (open loop): which rates, how long, and what counts as kept up with."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rates: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (0.3, 0.5, 0.7, 0.8, 0.9, 1.0),
        min_length=1,
        description="rates that are offered, as fractions of the throughput of the closed loop",
    )
    seconds: float = Field(5.0, gt=0, description="how long requests arrive at one rate")
    max_seconds: float = Field(
        30.0, gt=0, description="the same for slow rates, which need longer for the requests of a percentile"
    )
    max_batch: int = Field(32, ge=1, description="most waiting requests that are answered together")
    limit_ms: float | None = Field(
        None, gt=0, description="p99 latency that counts as kept up with; null: limit_factor decides"
    )
    limit_factor: float = Field(
        5.0,
        gt=1,
        description="the limit as a multiple of the closed loop's p50 with the largest batch that max_batch "
        "allows (limit_ms: null); about 2 are needed by a request that comes when a call has just begun",
    )
    resolution: float = Field(
        0.05, gt=0, lt=1, description="the search ends when the failing rate is at most this much higher"
    )
    search_steps: int = Field(8, ge=0, description="rates that are tried beyond `rates`, at most")
    retries: int = Field(
        1, ge=0, description="further tries of a rate that was not kept up with, before it counts as failed"
    )

    @model_validator(mode="after")
    def _distinct_and_ordered(self) -> Self:
        if len(set(self.rates)) < len(self.rates):
            raise ValueError("`rates` names a rate twice")
        if self.max_seconds < self.seconds:
            raise ValueError(f"max_seconds ({self.max_seconds:g}) is below seconds ({self.seconds:g})")
        return self


class CostSettings(Section):
    """What the machine costs; what is not given is not reckoned with."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    currency: str = Field("USD", min_length=1, description="what the price counts")
    price_per_hour: float | None = Field(None, gt=0, description="price of the whole machine for an hour")
    watts: float | None = Field(
        None, gt=0, description="power of the whole machine under load, used where power was not measured"
    )
    share_of_machine: float = Field(
        1.0, gt=0, le=1, description="share of the price and the assumed power that one process is charged"
    )


class RooflineSettings(Section):
    """Where the time goes: what the machine can do at best, and calls that are taken apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    calls: int = Field(
        20,
        ge=1,
        description="calls that are taken apart, per candidate, load and batch size, and as many plain",
    )
    seconds: float = Field(3.0, gt=0, description="time for both, after which they end early")
    repeats: int = Field(
        5, ge=1, description="measurements of every peak, before the first candidate and after each"
    )
    buffer_mb: float | None = Field(
        None,
        gt=0,
        description="memory that is read for the bandwidth; null: 4 x the last cache, 256 at least",
    )
    square: int = Field(2048, ge=8, description="side of the large matrices that are multiplied")
    gpu_square: int = Field(8192, ge=8, description="the same on a GPU, in fp32, TF32, bf16 and fp16")
    gpu_buffer_mb: float = Field(1024, gt=0, description="GPU memory that is moved for its bandwidth")


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
