"""How long a batch takes: rounds in which every candidate has its turn, in an order that changes.

Timings are taken in this one process, so candidates share its caches and thread pools; `measure` is all that
has to be replaced to take them in child processes of their own.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.compare import MIN_ROUNDS, Ratio, median_interval, median_ratio
from bench.loads import Load
from bench.report.schema import Latency, Speedup
from recommender.scoring import HistoryArrays, Scorer

Float64 = NDArray[np.float64]
Clock = Callable[[], int]

MIN_SAMPLES = {"p95_ms": (95, 20), "p99_ms": (99, 100)}
"""Percentile and the samples that it needs: one sample at least lies beyond it."""


@dataclass(frozen=True)
class Timed:
    """Samples of one load and batch size: row r of every candidate is the same batch in the same round."""

    load: Load
    threads: int
    seconds: Mapping[str, Float64]  # candidate -> [rounds]


def measure(
    scorers: Mapping[str, Scorer], batches: Sequence[HistoryArrays], *, k: int, rounds: int, warmup: int,
    seed: int, budget_seconds: float, clock: Clock = time.perf_counter_ns,
) -> dict[str, Float64]:  # fmt: skip
    """Seconds of each call, candidate -> [rounds]; one call per candidate and round, in an order drawn anew.

    Stops before `rounds` when `budget_seconds` are used up (warm-up apart), never below `MIN_ROUNDS` (or
    `rounds`, if fewer are asked for).
    """
    for scorer in scorers.values():
        for index in range(warmup):
            scorer.top_k(batches[index % len(batches)], k)
    names, samples = list(scorers), {name: np.empty(rounds) for name in scorers}
    rng = np.random.default_rng(seed)
    done = 0
    with _no_collection():
        begin = clock()
        while done < rounds and (done < MIN_ROUNDS or clock() - begin < budget_seconds * 1e9):
            batch = batches[done % len(batches)]
            for turn in rng.permutation(len(names)):
                scorer = scorers[names[turn]]
                start = clock()
                scorer.top_k(batch, k)
                samples[names[turn]][done] = (clock() - start) / 1e9
            done += 1
    return {name: values[:done] for name, values in samples.items()}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timings."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def latency(timed: Timed, name: str) -> Latency:
    """Median and, where the samples suffice, high percentiles of one candidate."""
    samples = timed.seconds[name]
    high = {
        key: float(np.percentile(samples, percentile) * 1e3)
        for key, (percentile, needed) in MIN_SAMPLES.items()
        if len(samples) >= needed
    }
    median = float(np.median(samples))
    return Latency(
        load=timed.load.name,
        length=round(timed.load.length, 2),
        batch=timed.load.batch,
        threads=timed.threads,
        p50_ms=median * 1e3,
        users_per_second=timed.load.batch / median,
        samples=len(samples),
        **high,
    )


def speedup(timed: Timed, candidate: str, against: str, *, draws: int, seed: int) -> Speedup:
    """Median time of `against` / median time of the candidate, with a bootstrap interval over rounds."""
    found: Ratio = median_ratio(timed.seconds[against], timed.seconds[candidate], draws=draws, seed=seed)
    return Speedup(
        load=timed.load.name,
        batch=timed.load.batch,
        threads=timed.threads,
        ratio=found.ratio,
        ci95=found.ci95,
    )


def speed_interval(timed: Timed, name: str, *, draws: int, seed: int) -> tuple[float, float] | None:
    """95% interval of users per second."""
    seconds = median_interval(timed.seconds[name], draws=draws, seed=seed)
    return None if seconds is None else (timed.load.batch / seconds[1], timed.load.batch / seconds[0])
