"""Everything that is measured in child processes: closed loops, the A/A floor, energy, open loops, memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from bench import energy
from bench.candidates import Candidate, device_of
from bench.child import Call, Child, ChildFailed
from bench.config import BenchConfig
from bench.crew import TWIN, Crew, Limits
from bench.device_work import CALLS, DeviceWork
from bench.latency import Timed, Turn, latency, measure
from bench.loads import USERS, Load, make_load
from bench.providers import cuda_device
from bench.report.schema import Energy, Latency
from bench.saturation import OpenLoopResult, probe
from recommender.stage import Context

BURST_SECONDS = 2.0
"""Work between two readings of an energy counter, at least."""


@dataclass(frozen=True)
class Timings:
    """What came back from the children; candidates by name, those that failed only as far as they came."""

    threads: int
    cores: Sequence[int] | None  # that every child was pinned to; None: the system pins nothing
    devices: Mapping[str, str]
    cells: Sequence[Timed]
    failures: Mapping[str, ChildFailed]
    twin_failed: ChildFailed | None
    opening_seconds: Mapping[str, float]
    warming_seconds: Mapping[str, float]
    restless: Mapping[str, int]  # timed calls after which threads of the candidate still ran
    called_ns: Mapping[str, int]  # all timed calls together
    waited_ns: Mapping[str, int]  # of that, ready to run but without a core
    peaks: Mapping[str, tuple[int, int | None]]  # (resident bytes, bytes of torch on the GPU)
    energy: Mapping[str, Sequence[Energy]] = field(default_factory=dict)
    open_loops: Mapping[str, OpenLoopResult] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def rows(self, name: str) -> list[Latency]:
        """All rows of one candidate, closed loops first."""
        closed = [latency(timed, name) for timed in self.cells if name in timed.seconds]
        return closed + (self.open_loops[name].rows if name in self.open_loops else [])


def time_all(
    config: BenchConfig, found: Sequence[Candidate], against: str, context: Context, threads: int
) -> Timings:
    """Time the scorers of the first seed.

    Candidates that fail are named with what happened. Raises InputError where one finds its input wrong.
    """
    devices = {each.name: device_of(each.ref, context.device) for each in found}
    limits = Limits(opening=config.open_timeout_seconds, call=config.call_timeout_seconds)
    with Crew(limits, threads) as crew:
        for each in found:
            context.progress("note", {"text": f"opening {each.name}"})
            crew.open(each.name, each.ref, devices[each.name])
            if each.name == against and config.aa:
                crew.open(each.name + TWIN, each.ref, devices[each.name])
        power, tracing = _Power(config, devices), _Tracing(devices)
        cells = list(_cells(config, crew, against, context, power, tracing))
        open_loops, saturation_notes = _open_loops(config, crew, cells, context)
        peaks = crew.each(lambda child: child.peak(seconds=limits.call))
        twin = against + TWIN
        return Timings(
            threads=threads,
            cores=crew.cores,
            devices=devices,
            cells=cells,
            failures={name: failure for name, failure in crew.failures.items() if name != twin},
            twin_failed=crew.failures.get(twin),
            opening_seconds=crew.opening_seconds,
            warming_seconds=crew.warming_seconds,
            restless=crew.restless,
            called_ns=crew.called_ns,
            waited_ns=crew.waited_ns,
            peaks=peaks,
            energy=power.found,
            open_loops=open_loops,
            notes=[*power.notes, *tracing.notes, *saturation_notes],
        )


def _cells(
    config: BenchConfig, crew: Crew, against: str, context: Context, power: "_Power", tracing: "_Tracing"
) -> Iterator[Timed]:
    cells = [(load, batch) for load in config.loads for batch in config.batch_sizes]
    k = min(config.k, context.prepared.n_items)
    for number, (name, batch) in enumerate(cells):
        text = f"latency, {name}, batch {batch}"
        context.progress("step", {"step": number, "total": len(cells), "text": text})
        load = make_load(
            name, context.prepared, context.split, batch=batch, rounds=config.rounds,
            max_length=context.data.max_length, seed=context.seed, mask_seen=context.evaluation.mask_seen,
        )  # fmt: skip
        timed = time_cell(
            crew, load, against, k=k, rounds=config.rounds, warmup=config.warmup, seed=context.seed,
            budget_seconds=config.latency_seconds / len(cells), in_a_row=config.in_a_row,
        )  # fmt: skip
        yield replace(timed, work=tracing.measure(crew, k))
        power.measure(crew, load, k)
    context.progress("done", {})


def time_cell(
    crew: Crew, load: Load, against: str, *, k: int, rounds: int, warmup: int, seed: int,
    budget_seconds: float, in_a_row: int = 1,
) -> Timed:  # fmt: skip
    """Rounds of one load and batch size with every child that works."""
    crew.take(load, k=k, warmup=warmup)
    turns: dict[str, Turn] = {
        name: partial(_turn, child, k, crew.limits.call) for name, child in crew.children.items()
    }
    calls = measure(
        turns, batches=len(load.batches), rounds=rounds, seed=seed, budget_seconds=budget_seconds,
        fail=crew.fail, in_a_row=in_a_row,
    )  # fmt: skip
    for name, made in calls.items():
        crew.count(name, made)
    return as_timed(load, crew.threads, calls, against, in_a_row)


def _turn(child: Child, k: int, seconds: float, batch: int) -> Call:
    return child.call(batch, k, seconds=seconds)


def as_timed(
    load: Load, threads: int, calls: Mapping[str, Sequence[Call]], against: str, in_a_row: int = 1
) -> Timed:
    """The calls of one cell as samples; those of the reference's second child apart."""
    seconds = {name: np.array([call.ns for call in made]) / 1e9 for name, made in calls.items()}
    device = {
        name: np.array([call.device_ms for call in made], dtype=np.float64)
        for name, made in calls.items()
        if name != against + TWIN and all(call.device_ms is not None for call in made)
    }
    twin = seconds.pop(against + TWIN, None)
    return Timed(load, threads, seconds, device, twin, in_a_row)


class _Tracing:
    """What each candidate on a GPU has it do: kernels and copies, in calls that are traced."""

    def __init__(self, devices: Mapping[str, str]) -> None:
        self.notes: list[str] = []
        self.names = {name for name, device in devices.items() if cuda_device(device) is not None}

    def measure(self, crew: Crew, k: int) -> dict[str, DeviceWork]:
        """Over the load that was sent last; a candidate that cannot be traced is noted and asked no more."""

        def of(child: Child) -> DeviceWork | None:
            if child.name not in self.names:  # the reference's second child among them
                return None
            found = child.device_work(k, calls=CALLS, seconds=crew.limits.call)
            if isinstance(found, str):
                self.names.remove(child.name)
                self.notes.append(f"Copies and kernels of {child.name} were not measured: {found}.")
                return None
            return found

        return crew.each(of)


class _Power:
    """Energy of each candidate: the counter of its device before and after a run of calls that is its own."""

    def __init__(self, config: BenchConfig, devices: Mapping[str, str]) -> None:
        self.notes: list[str] = []
        self.found: dict[str, list[Energy]] = {}
        places = {name: cuda_device(device) or device for name, device in devices.items()}
        used = dict.fromkeys(places.values()) if config.energy else ()
        meters = {place: energy.meter(place, note=self.notes.append) for place in used}
        self.meters = {
            name: meter for name, place in places.items() if (meter := meters.get(place)) is not None
        }

    def measure(self, crew: Crew, load: Load, k: int) -> None:
        """One run of calls per candidate that has a counter."""

        def block(child: Child) -> Energy | None:
            meter = self.meters.get(child.name)  # the reference's second child has none
            if meter is None:
                return None
            before = self._read(child.name, meter)
            if before is None:
                return None
            seconds, users = child.burst(k, lasting=BURST_SECONDS, seconds=crew.limits.call)
            after = self._read(child.name, meter)
            if after is None:
                return None
            joules = meter.joules(before, after)
            return energy.energy(
                joules, seconds, users, source=meter.source, load=load.name, batch=load.batch
            )

        for name, found in crew.each(block).items():
            self.found.setdefault(name, []).append(found)

    def _read(self, name: str, meter: energy.EnergyMeter) -> energy.Reading | None:
        """What the counter says; None where it fails, and then the candidate is measured no further."""
        try:
            return meter.read()
        except energy.UNREADABLE as error:
            self.notes.append(f"Energy of {name} was not measured to the end: {energy.reason(error)}.")
            del self.meters[name]
            return None


def _open_loops(
    config: BenchConfig, crew: Crew, cells: Sequence[Timed], context: Context
) -> tuple[dict[str, OpenLoopResult], list[str]]:
    """Requests at a rate, one candidate after the other."""
    if config.open_loop is None:
        return {}, []
    settings, k = config.open_loop, min(config.k, context.prepared.n_items)
    warming = (settings.max_batch.bit_length() + 1) * crew.limits.opening  # calls of 1, 2, 4, ... requests
    load = make_load(
        "real", context.prepared, context.split, batch=1, rounds=USERS, max_length=context.data.max_length,
        seed=context.seed, mask_seen=context.evaluation.mask_seen,
    )  # fmt: skip

    def of(child: Child) -> OpenLoopResult | None:
        closed = [latency(timed, child.name) for timed in cells if child.name in timed.seconds]
        if not closed:  # the reference's second child
            return None
        context.progress("note", {"text": f"open loop, {child.name}"})
        child.load(load.batches, seconds=crew.limits.opening)
        return probe(
            lambda rate, seconds: child.open_loop(
                k=k, rate=rate, lasting=seconds, batch=settings.max_batch, seed=context.seed, 
                seconds=warming + crew.limits.call,
            ),
            settings,
            candidate=child.name,
            closed=closed,
        )  # fmt: skip

    found = crew.each(of)
    return found, [note for each in found.values() for note in each.notes]
