"""The leaves of a report's optional sections, and what they share with its other parts (see `schema`)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Metrics = dict[str, float]
Interval = tuple[float, float]


class Part(BaseModel):
    """Base of every part: frozen, finite numbers only, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class QualityRatio(Part):
    """Ratio of means over the same users, with a bootstrap interval over users."""

    ratio: float
    ci95: Interval | None = None
    p_value: float | None = Field(None, description="two-sided, of the difference of the means")
    aa_half_width: float | None = Field(
        None,
        description="how far the ratio of `against` with one seed to itself with another may lie from 1: the "
        "far end of its 95% interval; mean over pairs of seeds whose ranks differ",
    )


class Zeros(Part):
    """Weights of a body that were pruned to exactly zero; every share says what it is a share of."""

    pattern: Literal["unstructured", "2:4"]
    of_body_matrices: float = Field(description="of the weights in the matrices of the body's blocks")
    of_body_parameters: float | None = Field(None, description="of `body_parameters`")
    of_everything: float | None = Field(None, description="of `parameters`, item table included")
    sparse_kernels: bool | None = Field(
        None,
        description="of an engine: whether it was built to skip 2:4 zeros; absent: not told",
    )


class ParetoPoint(Part):
    """One mark of the quality-against-speed plot."""

    candidate: str
    kind: Literal["checkpoint", "artifact"]
    quality: float
    quality_ci95: Interval | None = None
    users_per_second: float
    users_per_second_ci95: Interval | None = None


class Pareto(Part):
    """Quality against speed at one load and batch size."""

    metric: str
    load: str
    batch: int
    threads: int
    points: list[ParetoPoint]


class SliceRatio(Part):
    """One metric of one slice, candidate / against."""

    candidate: str
    against: str
    by: Literal["history", "popularity"]
    bin: str
    metric: str
    users: int
    ratio: QualityRatio


class Suggestions(Part):
    """What one candidate recommends to a sampled user, best first."""

    candidate: str
    titles: list[str]
    rank: int | None = Field(None, description="1-based place of the true next item; absent: not found")


class Sample(Part):
    """A test user: the newest titles of the history, what came next, and what each candidate recommends."""

    history: list[str]
    history_length: int
    next: str
    suggestions: list[Suggestions]


class Saturation(Part):
    """How many users per second one process answers before requests queue up."""

    candidate: str
    batch: int = Field(description="most requests that are answered together")
    users_per_second: float = Field(description="highest offered rate that was kept up with")
    limit_ms: float | None = Field(None, description="p99 latency that counts as kept up with")


class CostRow(Part):
    """What one candidate costs at one load and batch size."""

    candidate: str
    load: Literal["full", "real", "open-loop"]
    batch: int
    users_per_second: float
    users_per_currency_unit: float | None = None
    users_per_watt_hour: float | None = None
    power: Literal["measured", "assumed"] | None = Field(None, description="where the watts come from")


class Cost(Part):
    """Cost card: throughput turned into money and energy under stated assumptions."""

    currency: str
    price_per_hour: float | None = Field(None, description="of the machine or its share that was used")
    watts: float | None = Field(None, description="assumed power, where it was not measured")
    assumptions: list[str]
    rows: list[CostRow]


class RankChange(Part):
    """How places of the true next items move from one candidate to another, user by user.

    `edges` [n + 1] are changes in places, log-spaced around 0; bin i counts users with edges[i] <= change <
    edges[i + 1], where change = place with `candidate` - place with `against` (negative: better).
    """

    candidate: str
    against: str
    depth: int | None = Field(
        None,
        description="with both, places beyond it count as it: where the shorter list ends; absent: exact",
    )
    edges: list[float]
    counts: list[int]
    better: int
    same: int
    worse: int


class Finding(Part):
    """One thing that the numbers say, for better or worse; those against us are kept."""

    kind: Literal["holds", "fails", "open"]
    text: str


class Provenance(Part):
    """Where the candidates come from."""

    data_digest: str
    parents: dict[str, list[str]] = Field(description="name -> names that it was made from")
    digests: dict[str, str] = Field(description="name (seed N) -> digest of its stage or manifest")
