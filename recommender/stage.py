"""What a stage is given and what it gives back; every stage is `run(config, inputs, context) -> Outputs`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from recommender.data.config import DataConfig, EvaluationConfig, Section
from recommender.data.prepared import Prepared, Split
from recommender.models.config import ModelConfig
from recommender.scoring import ScorerRef
from recommender.sparsity import Zeros

Progress = Callable[[str, Mapping[str, Any]], None]
"""Called as progress(event, values): ("start"|"step"|"epoch"|"note"|"done", {...}); values are plain numbers
and text.
"""


def silent(event: str, values: Mapping[str, Any]) -> None:
    """The progress callback that says nothing."""


Kind = Literal["checkpoint", "artifact", "repository", "report", "profile"]


@dataclass(frozen=True)
class Measures:
    """What a report will hold, as far as its bench says so itself."""

    compare: tuple[str, ...]  # bound names; an artifact with several variants gives a candidate for each
    against: str  # what ratios refer to
    loads: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    aa: bool  # whether the A/A floor is measured
    ks: tuple[int, ...] | None = None  # cut-offs of the metrics; None until the recipe's evaluation is known


@dataclass(frozen=True)
class Shape:
    """What is known of a bound name before anything runs; None where only running will tell."""

    kind: Kind
    layers: int | None = None  # blocks of the user body
    model: ModelConfig | None = None
    top_k: int | None = None  # longest list that it answers
    measures: Measures | None = None  # of a report
    sparsity: Zeros | None = None  # zeros of the body's matrices, which later stages hold
    narrowed: bool = False  # its body was cut in width: what it was before its training is not known
    quantized: str | None = None  # summary of a checkpoint's quantization scheme; None: not quantized


class StageConfig(Section):
    """Base of all stage configs; each one adds `stage: Literal["name"]` and its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    stage: str
    """Which stage this is; every stage narrows it to its Literal."""

    pools_seeds: ClassVar[bool] = False
    """True for a stage that runs once for all seeds and reads `context.by_seed` (bench)."""

    distributed: ClassVar[bool] = False
    """True for a stage that all processes of an `accelerate launch` run together (train, distill)."""

    keeps: ClassVar[bool] = True
    """False for a stage that runs every time: it judges what lies there, and that may have changed (gate)."""

    accepts: ClassVar[tuple[Kind, ...]] = ("checkpoint",)
    """Kinds of input that `consumes` may name; the recipe check refuses the others."""

    @property
    def consumes(self) -> tuple[str, ...]:
        """Names (bound by earlier stages with `as`) that this stage reads, in the order it wants them."""
        return ()

    @property
    def foreign(self) -> tuple[str, ...]:
        """Names in `consumes` that may belong to another catalogue than the data; all others are refused."""
        return ()

    @property
    def produces(self) -> str | None:
        """The name that this stage binds, or None."""
        return None

    @property
    def named(self) -> dict[str, Any]:
        """What a checkpoint says of the stage that made it: `stage`, `name` and, with one source, `of`."""
        of = self.consumes[0] if len(self.consumes) == 1 else None
        return {"stage": self.stage, "name": self.produces, **({} if of is None else {"of": of})}

    @property
    def machine(self) -> Mapping[str, str]:
        """What of this machine the result is tied to, for its fingerprint: empty for what runs anywhere."""
        return {}

    def lacking(self) -> str | None:
        """What this machine lacks for the stage, and what mends it; None where nothing is known to."""
        return None

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """(field, what is wrong) for everything that can be seen before running; `known`: earlier names.

        Names in `consumes` that are missing in `known` have been reported already: skip them.
        """
        return []

    def shape(self, known: Mapping[str, Shape]) -> Shape | None:
        """What `produces` will be, as far as it can be told before running; called when `produces` is set."""
        return Shape("checkpoint") if self.produces else None


class OneSourceConfig(StageConfig):
    """Base of stages that make one thing of one other; each says in its options what both are."""

    of: str
    as_: str = Field(alias="as")

    @property
    def consumes(self) -> tuple[str, ...]:
        """The source."""
        return (self.of,)

    @property
    def produces(self) -> str:
        """The name of what is made."""
        return self.as_


def lasting(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself that still holds when its weights have been changed."""
    return {key: value for key, value in about.items() if key != "best_ndcg"}


@dataclass(frozen=True)
class Bound:
    """What a name stands for once its stage is complete."""

    name: str
    kind: Kind
    path: Path  # the checkpoint's or artifact's folder
    stage_folder: Path  # stages/NN-name/, holds stage.json (config, seconds, metrics)
    scorers: tuple[ScorerRef, ...] = ()  # how to open it; several for an artifact with several variants


@dataclass(frozen=True)
class Context:
    """Everything a stage may use besides its config and inputs."""

    prepared: Prepared
    data: DataConfig
    evaluation: EvaluationConfig
    seed: int
    device: str  # cpu | cuda
    folder: Path  # write outputs here; renamed into place when the stage returns
    scratch: Path  # survives a kill: state to resume from; deleted when the stage is complete
    progress: Progress = silent
    by_seed: Mapping[int, Mapping[str, Bound]] = field(default_factory=dict)  # seed -> name -> Bound
    recipe: Mapping[str, Any] = field(default_factory=dict)  # the resolved recipe, for manifests
    variant: str | None = None  # name of the recipe's variant that is run; None: the recipe itself
    command: str = ""
    threads: int | None = None

    @cached_property
    def split(self) -> Split:
        """The held-out split that `evaluation.split` asks for."""
        return self.prepared.split(self.evaluation.split)


@dataclass(frozen=True)
class Outputs:
    """What a stage made: numbers for stage.json; files lie in `context.folder`.

    A stage that makes a checkpoint writes it to `context.folder / "checkpoint"`, an artifact or a model
    repository to `context.folder / "artifact"` (the runner moves it to `artifacts/<as>/`), a depth profile to
    `context.folder / "profile"` (profile.json and pages); reports are written to
    `context.folder` as `report.json`, `report.md`, `report.html` (the runner copies them to the run's top).
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
