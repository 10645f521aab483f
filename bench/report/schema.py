"""What a report holds (schema_version 1): one pydantic class per part, and the JSON Schema made from them.

A number that was not measured is absent, never 0 and never null. `report.schema.json` beside this file is
`json_schema()` written out, for other languages; a test keeps the two equal.
"""

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from bench.report.parts import (
    Cost,
    Finding,
    Interval,
    Metrics,
    Pareto,
    Part,
    Provenance,
    QualityRatio,
    RankChange,
    Sample,
    Saturation,
    SliceRatio,
    Zeros,
)
from bench.report.roofline_parts import Roofline
from recommender.profile import DepthProfile

SCHEMA_VERSION = 1


class Environment(Part):
    """Where it was measured. Later versions may add facts."""

    model_config = ConfigDict(extra="allow")

    recpress: str | None = None
    python: str | None = None
    torch: str | None = None
    transformers: str | None = None
    onnxruntime: str | None = None
    numpy: str | None = None
    os: str | None = None
    cpu: str | None = Field(None, description="model name of the processor")
    isa: list[str] | None = Field(None, description="vector and matrix instruction sets of the processor")
    cores: int | None = Field(None, description="cores that this process may use")
    memory_bytes: int | None = None
    gpu: str | None = None
    driver: str | None = None


class Dataset(Part):
    """The prepared data set."""

    name: str
    users: int
    items: int
    interactions: int
    max_length: int = Field(description="longest history that a model reads")


class Evaluation(Part):
    """How quality was measured."""

    split: str
    ks: list[int]
    mask_seen: bool
    ties: Literal["pessimistic", "by-row"]
    sampled_negatives: int | None = Field(None, description="absent: ranked against the whole catalogue")
    users: int = Field(description="evaluated users")
    drawn_from: int | None = Field(
        None, description="test users that these were drawn from at random; absent: all of them"
    )


class SeedQuality(Part):
    """Mean metrics of one seed: {seed, metric: value, ...}."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Metrics

    seed: int


class Slice(Part):
    """Quality on some of the users."""

    by: Literal["history", "popularity"]
    bin: str
    users: int
    quality: Metrics


class Latency(Part):
    """Milliseconds per call of one batch; percentiles only where the samples suffice."""

    load: Literal["full", "real", "open-loop"]
    length: float = Field(
        description="mean number of items that a history of the load holds (cut to max_length)"
    )
    batch: int
    threads: int
    p50_ms: float
    p95_ms: float | None = Field(None, description="with 20 samples or more")
    p99_ms: float | None = Field(None, description="with 100 samples or more")
    users_per_second: float = Field(description="batch / median seconds; open-loop: answered per second")
    samples: int
    in_a_row: int | None = Field(
        None, description="calls of each turn, of which the last was timed; absent: 1"
    )
    rate: float | None = Field(None, description="open-loop: requests per second that were offered")
    device_ms: float | None = Field(None, description="median between CUDA events around the call")
    kernels_ms: float | None = Field(
        None, description="kernels on a GPU, summed, as CUDA's tracing sees them in calls of their own"
    )
    to_device_ms: float | None = Field(None, description="the same of copies from the host to the GPU")
    to_host_ms: float | None = Field(None, description="the same of copies from the GPU to the host")
    to_device_bytes: float | None = Field(None, description="that these copies move, per call")
    to_host_bytes: float | None = None
    kept_up: bool | None = Field(
        None, description="open-loop: whether the rate was kept up with; absent: too few requests to tell"
    )
    unanswered: int | None = Field(
        None, description="open-loop: requests without an answer; they count as infinitely slow"
    )


class Training(Part):
    """What the training cost; means over seeds."""

    seconds: float | None = None
    epochs: float | None = None
    seconds_per_epoch: float | None = None


class Energy(Part):
    """Energy of one load, read from a counter of the machine; absent where there is none."""

    source: Literal["rapl", "nvml"]
    load: Literal["full", "real"]
    batch: int
    watts: float = Field(description="mean power while the candidate worked")
    joules_per_user: float
    users_per_watt_hour: float


class CandidateReport(Part):
    """One thing that the bench compared."""

    name: str
    of: str | None = Field(None, description="the name that it was made from")
    kind: Literal["checkpoint", "artifact"]
    variant: str | None = None
    runtime: str
    device: str
    precision: str | None = None
    threads: int
    parameters: int | None = None
    body_parameters: int | None = None
    size_bytes: int | None = None
    zeros: Zeros | None = Field(None, description="absent: no weights were pruned")
    quality: Metrics
    quality_by_seed: list[SeedQuality]
    slices: list[Slice]
    coverage: Metrics
    latency: list[Latency]
    peak_memory_bytes: int | None = Field(None, description="largest resident size of its own process")
    peak_device_bytes: int | None = Field(None, description="largest memory that torch had on the GPU")
    energy: list[Energy] | None = None
    failed: str | None = Field(
        None, description="why measurements are missing: it crashed or hung; the others went on"
    )
    train: Training | None = None


class Speedup(Part):
    """Median time of `against` / median time of the candidate."""

    load: Literal["full", "real", "open-loop"]
    batch: int
    threads: int
    ratio: float
    ci95: Interval | None = None
    aa_floor: float | None = Field(
        None, description="|ratio - 1| of the reference in one process against itself in another"
    )
    aa_ci95: Interval | None = Field(None, description="95% interval of that ratio")

    @property
    def noise(self) -> float | None:
        """What two processes of one model may differ by: `aa_floor`, or the far end of its interval from 1.

        A floor may be small by luck; its interval says how much larger it might have been.
        """
        if self.aa_floor is None:
            return None
        low, high = self.aa_ci95 or (1.0, 1.0)
        return max(self.aa_floor, high - 1, 1 - low)


class Comparison(Part):
    """One candidate against another; ratios are candidate / against, speed-ups the other way round."""

    candidate: str
    against: str
    quality: dict[str, QualityRatio]
    size_ratio: float | None = None
    parameter_ratio: float | None = None
    speedup: list[Speedup]


class Sections(Part):
    """Optional parts. Others may be added without a new schema_version."""

    model_config = ConfigDict(extra="allow")

    pareto: list[Pareto] | None = None
    slice_ratios: list[SliceRatio] | None = None
    samples: list[Sample] | None = None
    depth_profile: list[DepthProfile] | None = None
    rank_changes: list[RankChange] | None = None
    saturation: list[Saturation] | None = None
    cost: Cost | None = None
    roofline: Roofline | None = None
    findings: list[Finding] | None = None
    provenance: Provenance | None = None
    notes: list[str] | None = Field(None, description="how to read the numbers, in sentences")


class Report(Part):
    """The whole of report.json."""

    schema_version: Literal[1] = 1
    recipe: str
    variant: str | None = None
    seeds: list[int]
    created: str = Field(description="UTC, ISO 8601")
    command: str
    environment: Environment
    dataset: Dataset
    evaluation: Evaluation
    candidates: list[CandidateReport]
    comparisons: list[Comparison]
    sections: Sections

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; what is absent has no key."""
        return self.model_dump(mode="json", exclude_none=True)


class _AbsentNotNull(GenerateJsonSchema):
    """An optional field may be missing; it may not be null."""

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of report.json."""
    schema = Report.model_json_schema(schema_generator=_AbsentNotNull)
    schema["required"] = ["schema_version", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """What stands in report.schema.json."""
    return json.dumps(json_schema(), indent=2) + "\n"
