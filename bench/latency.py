"""How long a batch takes: rounds in which every candidate has its turn, in an order that changes.

Each candidate sits in a process of its own (`bench.child`) and times its own call; here the turns are dealt
out, one at a time, and the samples become numbers with intervals.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.child import Call, ChildFailed
from bench.compare import MIN_ROUNDS, Ratio, median_interval, median_ratio
from bench.device_work import DeviceWork
from bench.loads import Load
from bench.report.schema import Latency, Speedup

Float64 = NDArray[np.float64]
Clock = Callable[[], int]
Turn = Callable[[int], Call]
"""One timed call with the batch of that number. Raises ChildFailed."""

MIN_SAMPLES = {"p95_ms": (95, 20), "p99_ms": (99, 100)}
"""Percentile and the samples that it needs: one sample at least lies beyond it."""


@dataclass(frozen=True)
class Timed:
    """Samples of one load and batch size: row r of every candidate is the same batch in the same round.

    A candidate that failed has none. `twin`: samples of the reference's second process.
    """

    load: Load
    threads: int
    seconds: Mapping[str, Float64]  # candidate -> [rounds]
    device_ms: Mapping[str, Float64] = field(default_factory=dict)  # the same, between CUDA events
    twin: Float64 | None = None
    in_a_row: int = 1  # calls of a turn, of which the last is the sample
    work: Mapping[str, DeviceWork] = field(default_factory=dict)  # of those on a GPU that could be traced


def measure(
    turns: Mapping[str, Turn], *, batches: int, rounds: int, seed: int, budget_seconds: float,
    fail: Callable[[str, ChildFailed], None], in_a_row: int = 1, clock: Clock = time.perf_counter_ns,
) -> dict[str, list[Call]]:  # fmt: skip
    """The calls of each candidate, one per round; every round deals the turns out in an order drawn anew.

    Round r takes batch r modulo `batches`; a turn makes `in_a_row` calls with it, and the last one counts.
    Stops before `rounds` when `budget_seconds` are used up, never below `MIN_ROUNDS` (or `rounds`, if fewer
    are asked for). A candidate whose turn fails is told to `fail` and left out, with the samples that it had;
    the others go on.
    """
    calls: dict[str, list[Call]] = {name: [] for name in turns}
    rng = np.random.default_rng(seed)
    begin, done = clock(), 0
    while calls and done < rounds and (done < MIN_ROUNDS or clock() - begin < budget_seconds * 1e9):
        names = list(calls)
        for turn in rng.permutation(len(names)):
            name = names[turn]
            try:
                made = [turns[name](done % batches) for _ in range(in_a_row)]
                calls[name].append(made[-1])
            except ChildFailed as failure:
                del calls[name]
                fail(name, failure)
        done += 1
    return calls


def latency(timed: Timed, name: str) -> Latency:
    """Median and, where the samples suffice, high percentiles of one candidate."""
    samples = timed.seconds[name]
    high = {
        key: float(np.percentile(samples, percentile) * 1e3)
        for key, (percentile, needed) in MIN_SAMPLES.items()
        if len(samples) >= needed
    }
    median = float(np.median(samples))
    device = timed.device_ms.get(name)
    return Latency(
        load=timed.load.name,
        length=round(timed.load.length, 2),
        batch=timed.load.batch,
        threads=timed.threads,
        p50_ms=median * 1e3,
        users_per_second=timed.load.batch / median,
        samples=len(samples),
        in_a_row=timed.in_a_row if timed.in_a_row > 1 else None,
        device_ms=None if device is None else float(np.median(device)),
        **(timed.work[name]._asdict() if name in timed.work else {}),
        **high,
    )


def speedup(timed: Timed, candidate: str, against: str, *, draws: int, seed: int) -> Speedup:
    """Median time of `against` / median time of the candidate, with a bootstrap interval over rounds.

    The A/A floor is |ratio - 1| of the reference against its twin in the same rounds, and `aa_ci95` the
    interval of that ratio: a floor that is small by luck has an interval that is not.
    """
    found: Ratio = median_ratio(timed.seconds[against], timed.seconds[candidate], draws=draws, seed=seed)
    same = None
    if timed.twin is not None:
        same = median_ratio(timed.seconds[against], timed.twin, draws=draws, seed=seed)
    return Speedup(
        load=timed.load.name,
        batch=timed.load.batch,
        threads=timed.threads,
        ratio=found.ratio,
        ci95=found.ci95,
        aa_floor=None if same is None else abs(same.ratio - 1),
        aa_ci95=None if same is None else same.ci95,
    )


def speed_interval(timed: Timed, name: str, *, draws: int, seed: int) -> tuple[float, float] | None:
    """95% interval of users per second."""
    seconds = median_interval(timed.seconds[name], draws=draws, seed=seed)
    return None if seconds is None else (timed.load.batch / seconds[1], timed.load.batch / seconds[0])
