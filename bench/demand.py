"""What a gate asks of a candidate."""

from typing import Literal, Self

from pydantic import Field, model_validator

from recommender.data.config import Section

LIMITS = ("min_quality", "min_speedup", "max_aa_floor", "max_size_ratio", "max_memory_ratio")


class Demand(Section):
    """What is asked of `candidate`, held against `against`; a limit that is null is not asked."""

    candidate: str = Field(description="what is to be shipped, as the report calls it: NAME or NAME:VARIANT")
    against: str = Field(description="what it is held against: the reference of the bench")
    metric: str = Field("ndcg@10", description="quality metric of `min_quality`")
    min_quality: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="share of the metric that must be kept: 0.97"
    )
    min_speedup: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="how many times as fast it must be at `load` and `batch`"
    )
    load: Literal["full", "real"] = Field("real", description="load of `min_speedup`")
    batch: int = Field(1, ge=1, description="users per call of `min_speedup`")
    max_aa_floor: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="most that the same model in two processes may differ there",
    )
    max_size_ratio: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest stored size, as a share of that of `against`"
    )
    max_memory_ratio: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest peak memory, as a share of that of `against`"
    )

    @model_validator(mode="after")
    def _decidable(self) -> Self:
        """A gate that asks nothing would be open to everything."""
        if all(getattr(self, limit) is None for limit in LIMITS):
            raise ValueError(f"the gate asks for nothing: give at least one of {', '.join(LIMITS)}")
        if self.candidate == self.against:
            raise ValueError(f"{self.candidate!r} cannot be held against itself")
        return self
