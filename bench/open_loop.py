"""Load at a rate: requests arrive when they arrive, whether or not earlier ones have been answered.

A closed loop asks again only when it has its answer, so a slow server is asked less often and its worst
moments are hardly sampled (coordinated omission; G. Tene, "How NOT to measure latency", 2013). Here the times
of arrival are drawn before the clock starts and latency counts from them. What the rates mean, and how the
highest one that is kept up with is found, stands in `bench.saturation`; this file is what the child process
runs, and it needs numpy and the scorer only.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.scoring import HistoryArrays, Int64, Scorer

Float64 = NDArray[np.float64]
Clock = Callable[[], int]
Wait = Callable[[float], None]

SPIN_SECONDS = 0.001
"""The end of a wait that is spent looking at the clock: a sleep alone ends late."""


@dataclass(frozen=True)
class OpenLoopSamples:
    """What became of every request that arrived at one rate. Times are seconds since the clock started."""

    rate: float  # requests per second that were offered
    seconds: float  # how long requests arrived
    batch: int  # most requests that are answered together
    length: float  # mean number of items of a request's history
    arrived: Float64  # [requests] in order of arrival
    answered: Float64  # [requests] NaN: no answer until the end of the drain
    call_sizes: Int64  # [calls] requests that were answered together
    call_seconds: Float64  # [calls]

    @property
    def latency_seconds(self) -> Float64:
        """[requests] from arrival to answer; infinite without an answer, so that none is left out."""
        waited: Float64 = self.answered - self.arrived
        return np.where(np.isnan(waited), np.inf, waited)

    @property
    def unanswered(self) -> int:
        """Requests that had no answer when the drain ended."""
        return int(np.isnan(self.answered).sum())

    @property
    def users_per_second(self) -> float:
        """Answers per second, from the start to the end of the window or the last answer if that is later."""
        ended = max(self.seconds, float(np.nanmax(self.answered, initial=0.0)))
        return (len(self.answered) - self.unanswered) / ended


def pause(seconds: float) -> None:
    """Wait; the last millisecond with an eye on the clock."""
    end = time.perf_counter_ns() + round(seconds * 1e9)
    if seconds > SPIN_SECONDS:
        time.sleep(seconds - SPIN_SECONDS)
    while time.perf_counter_ns() < end:
        pass


def serve(
    scorer: Scorer, histories: Sequence[HistoryArrays], *, k: int, rate: float, seconds: float, batch: int,
    seed: int, drain: float | None = None, clock: Clock = time.perf_counter_ns, wait: Wait = pause,
) -> OpenLoopSamples:  # fmt: skip
    """Answer Poisson arrivals of `rate` per second, drawn for `seconds`, with one server.

    Each request is one of `histories` (of one user each), drawn with replacement. Whenever the server is free
    it takes what waits, oldest first, at most `batch` requests, and answers them in one call; it never waits
    for a batch to fill. Putting the batch together counts as part of the answer. After the window no request
    arrives; what waits is answered for another `drain` seconds (None: as long as the window), then the rest
    counts as unanswered. So it ends after seconds + drain + one call, however overloaded it is.

    The garbage collector stays on, as it is in a server. `clock` counts nanoseconds, `wait` takes seconds.
    Raises ValueError for histories that are none or not of one user each, and for a rate, a time or a batch
    that is not above 0.
    """
    if not histories or any(len(each.items) != 1 for each in histories):
        raise ValueError("an open loop needs at least one history, of one user each")
    if not (rate > 0 and seconds > 0 and batch > 0):
        raise ValueError(f"rate {rate}, seconds {seconds} and batch {batch} must be above 0")
    arrived, wanted = draw_requests(rate, seconds, len(histories), seed)
    answered = np.full(len(arrived), np.nan)
    sizes, durations = [], []
    _warm_up(scorer, histories, k, batch)
    gc.collect()
    end = seconds + (seconds if drain is None else drain)
    first, begin = 0, clock()
    while first < len(arrived) and (now := (clock() - begin) / 1e9) < end:
        if arrived[first] > now:
            wait(float(arrived[first]) - now)
            continue
        last = min(first + batch, int(np.searchsorted(arrived, now, side="right")))
        scorer.top_k(together([histories[index] for index in wanted[first:last]]), k)
        done = (clock() - begin) / 1e9
        answered[first:last] = done
        sizes.append(last - first)
        durations.append(done - now)
        first = last
    items = np.array([np.count_nonzero(each.items) for each in histories])
    return OpenLoopSamples(
        rate=rate,
        seconds=seconds,
        batch=batch,
        length=float(items[wanted].mean()) if len(wanted) else 0.0,
        arrived=arrived,
        answered=answered,
        call_sizes=np.array(sizes, dtype=np.int64),
        call_seconds=np.array(durations, dtype=np.float64),
    )


def draw_requests(rate: float, seconds: float, histories: int, seed: int) -> tuple[Float64, Int64]:
    """Times of a Poisson process in [0, seconds) and the history of each request, both [requests].

    Gaps are one stream of the seed and histories another, so that two rates differ in nothing but the scale
    of the same gaps: what the draw makes harder or easier, it does at every rate.
    """
    gaps, choices = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    times = np.empty(0)
    while len(times) == 0 or times[-1] < seconds:
        more = gaps.standard_exponential(max(64, round(rate * seconds / 4))) / rate
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + np.cumsum(more)])
    times = times[times < seconds]
    return times, choices.integers(0, histories, len(times))


def together(requests: Sequence[HistoryArrays]) -> HistoryArrays:
    """One batch of histories of one user each, left-padded to the longest; seen rows and times likewise.

    Raises ValueError where some have seen rows (or times) and others have none.
    """
    return HistoryArrays(
        items=_stack([each.items for each in requests]),
        seen=_stack_optional("seen rows", [each.seen for each in requests]),
        times=_stack_optional("times", [each.times for each in requests]),
    )


def _stack_optional(what: str, rows: Sequence[Int64 | None]) -> Int64 | None:
    known = [row for row in rows if row is not None]
    if known and len(known) < len(rows):
        raise ValueError(f"some histories have {what} and others have none")
    return _stack(known) if known else None


def _stack(rows: Sequence[Int64]) -> Int64:
    """[1, L_i] each -> [B, max L]."""
    if len(rows) == 1:
        return rows[0]
    out = np.zeros((len(rows), max(row.shape[1] for row in rows)), dtype=np.int64)
    for index, row in enumerate(rows):
        if row.shape[1]:
            out[index, -row.shape[1] :] = row[0]
    return out


def _warm_up(scorer: Scorer, histories: Sequence[HistoryArrays], k: int, batch: int) -> None:
    """Untimed calls of 1, 2, 4, ... `batch` requests: new shapes cost more the first time."""
    sizes = {min(2**power, batch) for power in range(batch.bit_length() + 1)}
    for size in sorted(sizes):
        scorer.top_k(together([histories[index % len(histories)] for index in range(size)]), k)
