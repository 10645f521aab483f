"""Where the time goes, measured after everything else: the machine's peaks and calls that are taken apart.

One child measures the machine, before the first candidate and after each one; every candidate has a child of
its own again, so that nothing of this touches what was timed before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.apart import How
from bench.candidates import Candidate, formulas_of
from bench.child import Child, ChildFailed, as_plain
from bench.config import BenchConfig, RooflineSettings
from bench.environment import environment
from bench.gpu_roofline import MOST_POSITIONS as MOST_ON_GPU
from bench.gpu_roofline import GpuPeaks, gpu_machine, runs_in_tf32
from bench.latency import Timed
from bench.loads import Load
from bench.peaks import Shape, last_level_cache
from bench.providers import cuda_device
from bench.report import wording
from bench.report.roofline_parts import GpuMachine
from bench.timing import Timings
from recommender.cost import CostFormulas, PartName, Work, counts, work_of
from recommender.errors import RecpressError
from recommender.stage import Context

LEAST_BUFFER = 256 << 20
LARGEST_BUFFER = 2 << 30
MOST_POSITIONS = 2048
"""Rows of the left matrix, where the model's own shapes are multiplied: more leave the caches."""

NO_FORMULAS = {
    "artifact": "its manifest has no cost formulas, so FLOPs, bytes and bounds are unknown; export it again",
    "checkpoint": "its kind of model has no cost formulas, so FLOPs, bytes and bounds are unknown",
}
NO_SPLIT = "its calls cannot be taken apart: it runs neither op by op in torch nor in onnxruntime sessions"
OVERFLOWED = (
    "the profile of its calls at batch {batch} ({load}) is not whole, as onnxruntime keeps a million events: "
    "with fewer `roofline.calls` it would be"
)
NOT_WHOLE = "it was not taken apart to the end"


@dataclass(frozen=True)
class Trial:
    """Samples of one way to reach a peak."""

    what: str
    library: str
    how: str
    shape: Shape | None
    rates: Sequence[float]


@dataclass(frozen=True)
class Split:
    """Calls of one load that were taken apart; nanoseconds."""

    how: How
    plain: Sequence[float]
    parts: Sequence[Mapping[str, float]]
    products: Sequence[tuple[float, float]] | None  # (ns, FLOPs) of those in the blocks, call by call


@dataclass
class Measured:
    """What was found out of one candidate."""

    formulas: CostFormulas | None = None
    shapes: list[Shape] = field(default_factory=list)
    splits: dict[tuple[str, int], Split] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    tf32: bool | None = None  # on a GPU: whether its float32 products are rounded; None: on the processor


@dataclass(frozen=True)
class Evidence:
    """The machine and the candidates, by name."""

    trials: Sequence[Trial]
    candidates: Mapping[str, Measured]
    buffer_bytes: int
    cache_bytes: int | None
    machine_failed: str | None = None  # what became of the child that measures it, after its first time
    gpu: GpuMachine | None = None
    gpu_failed: str | None = None


def measure_roofline(
    config: BenchConfig, settings: RooflineSettings, found: Sequence[Candidate], timings: Timings,
    context: Context,
) -> Evidence:  # fmt: skip
    """Take the candidates apart that were timed on the processor, and find the bounds of those on a GPU.

    A candidate that fails here keeps what was measured before, and `missing` says what happened. Raises
    ChildFailed where the machine itself cannot be measured; where that fails later, its first peaks stand.
    """
    machine, gpu = _Machine(settings, config, timings), _gpu(settings, config, timings)
    try:
        machine.measure()
        if gpu is not None:
            gpu.measure()
        candidates: dict[str, Measured] = {}
        for each in found:
            cells = [timed for timed in timings.cells if each.name in timed.seconds]
            if not cells:
                continue  # it failed, and the report says so
            context.progress("note", {"text": f"taking {each.name} apart"})
            found_out = candidates[each.name] = _measured(each, cells, config, settings, timings, context)
            if gpu is not None and found_out.tf32 is not None:
                gpu.measure(found_out.shapes)
            else:
                machine.measure_again(found_out.shapes)
        peaks = None
        if gpu is not None:
            peaks = gpu_machine(
                gpu.trials(), device=gpu.device, name=environment().gpu, buffer_bytes=gpu.buffer_bytes
            )
        return Evidence(
            machine.trials(), candidates, machine.buffer_bytes, machine.cache_bytes, machine.failed, peaks,
            None if gpu is None else gpu.failed,
        )  # fmt: skip
    finally:
        machine.child.end()
        if gpu is not None:
            gpu.child.end()


def _gpu(settings: RooflineSettings, config: BenchConfig, timings: Timings) -> GpuPeaks | None:
    """The GPU that candidates ran on; None where none did."""
    used = [found for device in timings.devices.values() if (found := cuda_device(device)) is not None]
    if not used:
        return None
    return GpuPeaks(
        used[0], threads=timings.threads, cores=timings.cores or (), seconds=config.open_timeout_seconds,
        repeats=settings.repeats, buffer_bytes=int(settings.gpu_buffer_mb * (1 << 20)),
        square=settings.gpu_square,
    )  # fmt: skip


class _Machine:
    """The child that knows the peaks, and all samples so far."""

    def __init__(self, settings: RooflineSettings, config: BenchConfig, timings: Timings) -> None:
        self.cache_bytes = last_level_cache()
        self.buffer_bytes = buffer_bytes(settings.buffer_mb, self.cache_bytes)
        self.settings, self.seconds = settings, config.open_timeout_seconds
        self.shapes: dict[Shape, None] = {(settings.square,) * 3: None}
        self.rates: dict[tuple[str, str, str, Shape | None], list[float]] = {}
        self.child = Child("machine", threads=timings.threads, cores=timings.cores or ())
        self.failed: str | None = None

    def measure(self, shapes: Sequence[Shape] = ()) -> None:
        """One more measurement of everything, with the shapes of a candidate from now on."""
        self.shapes.update(dict.fromkeys(shapes))
        order = {
            "order": "machine", "threads": self.child.threads, "buffer_bytes": self.buffer_bytes,
            "shapes": list(self.shapes), "repeats": self.settings.repeats,
        }  # fmt: skip
        said = self.child.ask(order, seconds=self.seconds, doing="when the machine was measured")
        for trial in said["trials"]:
            shape = trial["shape"] and tuple(trial["shape"])
            key = (trial["what"], trial["library"], trial["how"], shape)
            self.rates.setdefault(key, []).extend(trial["rates"])

    def measure_again(self, shapes: Sequence[Shape]) -> None:
        """The same after a candidate; where it fails, what is known of machine and candidates stands."""
        if self.failed is not None:
            return
        try:
            self.measure(shapes)
        except ChildFailed as failure:
            self.failed = failure.text

    def trials(self) -> list[Trial]:
        """Everything that was measured."""
        return [Trial(*key, rates) for key, rates in self.rates.items()]


def buffer_bytes(wanted_mb: float | None, cache_bytes: int | None) -> int:
    """How much memory is read: well above the last cache, or as the recipe says."""
    if wanted_mb is not None:
        return int(wanted_mb * (1 << 20))
    return min(max(4 * (cache_bytes or 0), LEAST_BUFFER), LARGEST_BUFFER)


def _measured(
    candidate: Candidate, cells: Sequence[Timed], config: BenchConfig, settings: RooflineSettings,
    timings: Timings, context: Context,
) -> Measured:  # fmt: skip
    """All that can be found out of a candidate; whatever goes wrong is said, and costs nobody else."""
    found = Measured()
    device = timings.devices[candidate.name]
    try:
        if device != "cpu":
            found.tf32 = runs_in_tf32(candidate)
        found.formulas = formulas_of(candidate)
        if candidate.kind == "artifact" and found.formulas is None:
            found.missing.append(NO_FORMULAS["artifact"])
        if device == "cpu" or candidate.kind == "checkpoint":
            _take_apart(found, candidate, cells, config, settings, timings, context)
    except ChildFailed as failure:
        found.missing.append(f"{NOT_WHOLE}: it {failure.text}")
    except Exception as error:  # the times and the quality of all candidates are worth more than this
        found.missing.append(f"{NOT_WHOLE}: {in_words(error)}")
    if found.formulas is not None:
        most = MOST_POSITIONS if device == "cpu" else MOST_ON_GPU
        found.shapes = own_shapes(found.formulas, [timed.load for timed in cells], most=most)
    return found


def in_words(error: Exception) -> str:
    """An error as part of a sentence."""
    said = f"{error.where}: {error.what}" if isinstance(error, RecpressError) and error.where else str(error)
    return " ".join(f"{type(error).__name__}: {said}".split())


def _take_apart(
    found: Measured, candidate: Candidate, cells: Sequence[Timed], config: BenchConfig,
    settings: RooflineSettings, timings: Timings, context: Context,
) -> None:  # fmt: skip
    """Add the splits of every load, and of a checkpoint its formulas, in a child of their own."""
    child = Child(candidate.name, threads=timings.threads, cores=timings.cores or ())
    k, rows = min(config.k, context.prepared.n_items), context.prepared.n_items + 1
    try:
        device = timings.devices[candidate.name]
        order = {
            "order": "trace", "ref": as_plain(candidate.ref), "device": device, "threads": timings.threads
        }  # fmt: skip
        said = child.ask(order, seconds=config.open_timeout_seconds, doing="when it was opened once more")
        if said["formulas"] is not None:
            found.formulas = CostFormulas.model_validate(said["formulas"])
        elif candidate.kind == "checkpoint":
            found.missing.append(NO_FORMULAS["checkpoint"])
        for timed in cells if device == "cpu" else ():
            split = _split(child, timed.load, said["how"], k, config, settings, rows)
            if isinstance(split, Split):
                found.splits[timed.load.name, timed.load.batch] = split
            elif split not in found.missing:
                found.missing.append(split)
    finally:
        child.end()


def _split(
    child: Child, load: Load, how: How | None, k: int, config: BenchConfig, settings: RooflineSettings,
    rows: int,
) -> Split | str:  # fmt: skip
    """Calls of one load, or why they cannot be taken apart."""
    if how is None:
        return NO_SPLIT
    child.load(load.batches, seconds=config.open_timeout_seconds)
    order = {"order": "split", "k": k, "calls": settings.calls, "seconds": settings.seconds, "rows": rows}
    limit = config.open_timeout_seconds + settings.seconds + 8 * config.call_timeout_seconds
    said = child.ask(order, seconds=limit, doing="while it was taken apart")
    if said["overflowed"]:
        return OVERFLOWED.format(batch=load.batch, load=wording.load(load.name))
    if not said["parts"]:
        return NO_SPLIT
    products = said["products"] and [(float(ns), float(flops)) for ns, flops in said["products"]]
    return Split(how, said["plain_ns"], said["parts"], products)


def lengths_of(batch: Any) -> list[int]:
    """Items that each history of a batch holds."""
    return [int(count) for count in np.count_nonzero(batch.items, axis=1)]


def mean_work(formulas: CostFormulas, load: Load, k: int, rows: int) -> dict[PartName, Work]:
    """The least work of a call by part, mean over the batches of a load."""
    every = [work_of(formulas, lengths_of(batch), k=k, rows=rows) for batch in load.batches]
    return {
        name: sum((each[name] for each in every), Work()).scaled(1 / len(every)) for name in formulas.parts
    }


def own_shapes(formulas: CostFormulas, loads: Sequence[Load], most: int = MOST_POSITIONS) -> list[Shape]:
    """The products in the blocks, as the largest of the timed calls makes them."""
    largest = max(
        counts(formulas, lengths_of(batch), k=1)["position"] for load in loads for batch in load.batches
    )
    rows = max(1, min(int(largest), most))
    return [(rows, inputs, outputs) for inputs, outputs in formulas.shapes]
