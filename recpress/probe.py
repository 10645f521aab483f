"""A short trial of a training stage, to tell what all of it will cost: a few real steps, extrapolated."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recommender.stage import Bound, Context, StageConfig
from recommender.training.config import TrainSettings
from recpress.stages import StageKind

STEPS = 8
SETTLE = 3
"""The first steps warm up allocators and kernels; they are not counted."""
VALIDATION_USERS = 256


@dataclass
class Clock:
    """A progress callback that notes when each training step ended."""

    ends: list[float] = field(default_factory=list)

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """One event of the stage."""
        if event == "step":
            self.ends.append(time.perf_counter())

    def seconds_per_step(self) -> float | None:
        """Median of the settled steps; None when there were too few."""
        gaps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        settled = gaps[SETTLE - 1 :] or gaps
        return statistics.median(settled) if settled else None


@dataclass(frozen=True)
class Cost:
    """What a stage is expected to need."""

    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    extrapolated: bool = False  # from a few steps to all epochs


UNKNOWN = Cost(None, None, None)


def is_training(config: StageConfig) -> bool:
    """Whether the stage trains, so that a few of its steps can be tried."""
    return isinstance(config, TrainSettings)


def probe(kind: StageKind, config: StageConfig, inputs: Mapping[str, Bound], context: Context) -> Cost:
    """Run a stage in `context.folder`, a training stage for a few steps only; the cost of the whole stage.

    Seconds are for all epochs: early stopping may end sooner. Memory is the peak of this process (of the GPU
    with CUDA), disk the size of what was written.
    """
    clock = Clock()
    tried = config
    if isinstance(config, TrainSettings):
        tried = config.model_copy(
            update={"max_steps": STEPS, "validation_users": VALIDATION_USERS, "save_every_seconds": math.inf}
        )
    started = time.perf_counter()
    outputs = kind.function()(tried, inputs, replace(context, progress=clock))
    elapsed = time.perf_counter() - started
    whole = _whole(config, context, clock, outputs.metrics) if isinstance(config, TrainSettings) else None
    disk = sum(file.stat().st_size for file in context.folder.rglob("*") if file.is_file())
    return Cost(elapsed if whole is None else whole, _peak_memory(context.device), disk, whole is not None)


def _whole(config: TrainSettings, context: Context, clock: Clock, metrics: Mapping[str, Any]) -> float | None:
    """Seconds of all epochs with their validations; None where nothing is trained (popularity)."""
    step = clock.seconds_per_step()
    if step is None:
        return None
    per_epoch = math.ceil(context.prepared.n_users / config.batch_size)
    steps = min(per_epoch * config.epochs, config.max_steps or sys.maxsize)
    users = config.validation_users or context.prepared.n_users
    share = max(users / min(VALIDATION_USERS, context.prepared.n_users), 1.0)
    validations = math.ceil(steps / per_epoch / config.validate_every)
    return steps * step + validations * share * float(metrics.get("validation_seconds", 0.0))


def _peak_memory(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def trial_folder(top: Path, number: int) -> tuple[Path, Path]:
    """An output and a scratch folder for one trial."""
    folder, scratch = top / f"{number}" / "out", top / f"{number}" / "scratch"
    folder.mkdir(parents=True)
    scratch.mkdir()
    return folder, scratch
