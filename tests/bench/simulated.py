"""A server in simulated time: nothing sleeps, and how long a call takes is known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bench.open_loop import OpenLoopSamples, serve
from recommender.scoring import HistoryArrays, TopK

HISTORIES = [
    HistoryArrays(np.array([[1, 2, 3]]), np.array([[1, 2, 3, 9]]), np.array([[10, 20, 30]])),
    HistoryArrays(np.array([[4]]), np.array([[4]]), np.array([[40]])),
    HistoryArrays(np.array([[5, 6]]), np.array([[5, 6]]), np.array([[50, 60]])),
]


@dataclass
class Simulated:
    """Clock, wait and scorer in one; a call of b users takes `cost(b)` seconds."""

    cost: Callable[[int], float]
    now: float = 0.0
    batches: list[HistoryArrays] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def clock(self) -> int:
        return round(self.now * 1e9)

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.waited.append(seconds)
        self.now += seconds + 2e-9  # a clock of whole nanoseconds must have passed the arrival

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        self.batches.append(history)
        self.now += self.cost(len(history.items))
        return TopK(
            np.zeros((len(history.items), k), np.int64), np.zeros((len(history.items), k), np.float32)
        )

    def serve(
        self, rate: float, seconds: float, *, batch: int = 1, seed: int = 0, drain: float | None = None
    ) -> OpenLoopSamples:
        return serve(
            self, HISTORIES, k=2, rate=rate, seconds=seconds, batch=batch, seed=seed, drain=drain,
            clock=self.clock, wait=self.wait,
        )  # fmt: skip


def fixed(seconds: float) -> Callable[[int], float]:
    """A call takes as long however many users it answers."""
    return lambda users: seconds


def affine(start: float, each: float) -> Callable[[int], float]:
    """A call takes a start and something for each user."""
    return lambda users: start + each * users
