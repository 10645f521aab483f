"""The sections `open_loop:`, `cost:` and `roofline:` of the stage `bench`; a recipe is read with no more."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from recommender.data.config import Section


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
