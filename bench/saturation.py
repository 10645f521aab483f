"""How many requests per second are kept up with: rates are walked, then the highest such rate is found.

A rate is kept up with when both hold over the requests that arrived in its window:

1. the 99th percentile of latency, arrival to answer, is within a limit. A request without an answer is
   infinitely slow, so this says that 99 of 100 were answered in time;
2. 99 of 100 were answered by the end of the window, give or take two calls (what arrives last has to wait for
   the call that is running, and then for its own). Without this, a wide limit would hide a queue that grows
   too slowly to reach it before the window ends.

With fewer than 100 requests there is no such percentile, and the question stays open: windows are made long
enough for that at slow rates, up to a limit of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.config import OpenLoopSettings
from bench.latency import MIN_SAMPLES
from bench.open_loop import Float64, OpenLoopSamples
from bench.report.parts import Saturation
from bench.report.schema import Latency

Ask = Callable[[float, float], OpenLoopSamples]
"""(requests per second, seconds of the window) -> what became of them; asks the child process."""

SHARE = 0.99
"""Share of the requests that has to be answered in time."""

WANTED = 150
"""Requests that a window is made long enough for: fewer than 100 then come once in 100,000 draws."""

MOST = 100_000
"""Requests that a window is made short enough for: more tell nothing new and take memory."""

SEARCH = 1.5
"""Factor between rates while the highest rate that is kept up with has been found from one side only."""

LOADS = ("real", "full")
"""Closed loops that tell what to expect, the better one first: open loops ask real histories."""


@dataclass(frozen=True)
class OpenLoopResult:
    """One row per rate that was offered, ascending, and the highest one that was kept up with."""

    rows: list[Latency]
    saturation: Saturation | None
    notes: list[str]  # what is missing, and why


@dataclass
class _Search:
    """The rates that were tried, and what is known of the saturation point."""

    ask: Ask
    settings: OpenLoopSettings
    limit_seconds: float
    tried: dict[float, tuple[OpenLoopSamples, bool | None]] = field(default_factory=dict)

    def offer(self, rate: float) -> bool | None:
        """Ask at a rate; one that fails below every known failure gets another chance, as machines hiccup."""
        chances = 1 + (self.settings.retries if rate < (self.failed or np.inf) else 0)
        for _ in range(chances):
            samples = self.ask(rate, window_seconds(rate, self.settings))
            verdict = kept_up(samples, self.limit_seconds)
            self.tried[rate] = samples, verdict
            if verdict is not False:
                break
        return verdict

    @property
    def failed(self) -> float | None:
        """The lowest rate that was not kept up with."""
        return min((rate for rate, (_, verdict) in self.tried.items() if verdict is False), default=None)

    @property
    def held(self) -> float | None:
        """The highest rate that was kept up with, of those below every failure."""
        top = self.failed or np.inf
        rates = (rate for rate, (_, verdict) in self.tried.items() if verdict and rate < top)
        return max(rates, default=None)

    def next_rate(self) -> float | None:
        """Where to try next; None when both sides are known and close."""
        if self.held is None:
            return None if self.failed is None else self.failed / SEARCH
        if self.failed is None:
            return self.held * SEARCH
        close = self.failed <= self.held * (1 + self.settings.resolution)
        return None if close else float(np.sqrt(self.held * self.failed))


def probe(
    ask: Ask, settings: OpenLoopSettings, *, candidate: str, closed: Sequence[Latency]
) -> OpenLoopResult:
    """Latency at each rate, and the saturation point.

    `closed`: the candidate's closed-loop rows; they say what rates are worth trying, and how long a call is.
    The saturation point is absent unless a higher rate was seen to fail. Raises ValueError without rows.
    """
    capacity, call_ms = expectation(closed, settings.max_batch)
    limit_ms = settings.limit_ms or settings.limit_factor * call_ms
    search = _Search(ask, settings, limit_ms / 1e3)
    for fraction in sorted(settings.rates):
        search.offer(fraction * capacity)
    for _ in range(settings.search_steps):
        rate = search.next_rate()
        if rate is None or search.offer(rate) is None:
            break
    notes = [_incomplete(candidate, search)] if search.held is None or search.failed is None else []
    notes += _unsteady(candidate, search)
    rows = []
    for _, (samples, verdict) in sorted(search.tried.items()):
        row = open_loop_row(samples, verdict, threads=closed[0].threads)
        if row is None:
            notes.append(_no_row(candidate, samples))
        else:
            rows.append(row)
    saturation = None
    if search.held is not None and search.failed is not None:
        saturation = Saturation(
            candidate=candidate,
            batch=settings.max_batch,
            users_per_second=search.held,
            limit_ms=limit_ms,
        )
    return OpenLoopResult(rows, saturation, notes)


def expectation(closed: Sequence[Latency], max_batch: int) -> tuple[float, float]:
    """(users per second, milliseconds of a call) that the closed loop leads one to expect.

    The throughput is the best one with batches of at most `max_batch` (with the smallest, if all are larger),
    the time is the median with the largest of them. Raises ValueError without closed-loop rows.
    """
    for load in LOADS:
        rows = sorted((row for row in closed if row.load == load), key=lambda row: row.batch)
        if rows:
            fitting = [row for row in rows if row.batch <= max_batch] or rows[:1]
            return max(row.users_per_second for row in fitting), fitting[-1].p50_ms
    raise ValueError("an open loop needs closed-loop rows first: they say what rates are worth trying")


def window_seconds(rate: float, settings: OpenLoopSettings) -> float:
    """How long requests arrive at a rate: longer where few come, shorter where very many do."""
    longest = min(max(settings.seconds, WANTED / rate), settings.max_seconds)
    return min(longest, MOST / rate)


def kept_up(samples: OpenLoopSamples, limit_seconds: float) -> bool | None:
    """Whether the rate was kept up with (see the top of this file); None: too few requests to tell."""
    p99 = percentile(samples.latency_seconds, "p99_ms")
    if p99 is None:
        return None
    grace = 2 * float(np.median(samples.call_seconds)) if len(samples.call_seconds) else 0.0
    in_time = float(np.mean(samples.answered <= samples.seconds + grace))  # NaN <= x is False
    return p99 <= limit_seconds and in_time >= SHARE


def percentile(seconds: Float64, name: str) -> float | None:
    """The percentile of that name: what at least so many requests took at most; None for too few samples.

    No interpolation, as latencies may be infinite.
    """
    percent, needed = MIN_SAMPLES[name]
    if len(seconds) < needed:
        return None
    return float(np.percentile(seconds, percent, method="inverted_cdf"))


def open_loop_row(samples: OpenLoopSamples, verdict: bool | None, *, threads: int) -> Latency | None:
    """One row of the report; None when fewer than half of the requests had an answer, or none arrived."""
    latency = samples.latency_seconds
    p50 = float(np.percentile(latency, 50, method="inverted_cdf")) if len(latency) else np.inf
    if not np.isfinite(p50):
        return None
    high = {name: percentile(latency, name) for name in MIN_SAMPLES}
    return Latency(
        load="open-loop",
        length=round(samples.length, 2),
        batch=samples.batch,
        threads=threads,
        p50_ms=p50 * 1e3,
        users_per_second=samples.users_per_second,
        samples=len(latency),
        rate=samples.rate,
        kept_up=verdict,
        unanswered=samples.unanswered,
        **{name: value * 1e3 for name, value in high.items() if value is not None and np.isfinite(value)},
    )


def _incomplete(candidate: str, search: _Search) -> str:
    """Why there is no saturation point."""
    edge = max(search.tried) if search.failed is None else min(search.tried)
    verdict = search.tried[edge][1]
    if verdict is None:
        needed, limit = MIN_SAMPLES["p99_ms"][1], search.settings.max_seconds
        why = f"at {edge:.3g} requests per second fewer than {needed} came within {limit:g} s (max_seconds)"
    elif verdict:
        why = f"{edge:.3g} requests per second, the highest rate that was tried, were kept up with"
    else:
        why = f"{edge:.3g} requests per second, the lowest rate that was tried, were not kept up with"
    return f"No saturation point of {candidate}: {why}."


def _unsteady(candidate: str, search: _Search) -> list[str]:
    """What to say when a rate was kept up with although a lower one was not."""
    lower = search.failed or np.inf
    higher = [rate for rate, (_, verdict) in search.tried.items() if verdict and rate > lower]
    if not higher:
        return []
    return [
        f"{candidate} did not keep up with {lower:.3g} requests per second but did with {max(higher):.3g}: "
        "something else was at work on the machine, and the lower rate counts."
    ]


def _no_row(candidate: str, samples: OpenLoopSamples) -> str:
    """Why a rate has no row."""
    if not len(samples.arrived):
        return (
            f"{candidate} at {samples.rate:.3g} requests per second: none came within {samples.seconds:g} s."
        )
    return (
        f"{candidate} at {samples.rate:.3g} requests per second: {samples.unanswered} of "
        f"{len(samples.arrived)} requests had no answer, so there is no median."
    )
