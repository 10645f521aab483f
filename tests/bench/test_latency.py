from dataclasses import dataclass, field

import numpy as np
import pytest

from bench.compare import MIN_ROUNDS
from bench.latency import Timed, latency, measure, speed_interval, speedup
from bench.loads import Load
from recommender.scoring import HistoryArrays, TopK

BATCHES = [HistoryArrays(np.full((2, width), 1)) for width in (1, 2, 3)]


@dataclass
class Clock:
    """Time that passes only when a scorer says so."""

    now: int = 0
    log: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now


@dataclass
class Slow:
    """Takes a known time per column of its batch."""

    name: str
    milliseconds: float
    clock: Clock

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        self.clock.now += round(self.milliseconds * 1e6) * history.items.shape[1]
        self.clock.log.append((self.name, history.items.shape[1]))
        return TopK(np.zeros((2, k), dtype=np.int64), np.zeros((2, k), dtype=np.float32))


def timed(rounds: int, *, budget: float = 1e9, warmup: int = 0) -> tuple[dict[str, np.ndarray], Clock]:
    clock = Clock()
    scorers = {"a": Slow("a", 1, clock), "b": Slow("b", 4, clock), "c": Slow("c", 2, clock)}
    found = measure(
        scorers, BATCHES, k=5, rounds=rounds, warmup=warmup, seed=0, budget_seconds=budget, clock=clock
    )
    return found, clock


def test_each_sample_is_the_time_of_its_own_call() -> None:
    found, _ = timed(4)
    assert found["a"].tolist() == pytest.approx([0.001, 0.002, 0.003, 0.001])
    assert found["b"].tolist() == pytest.approx([0.004, 0.008, 0.012, 0.004])


def test_every_round_gives_each_candidate_one_turn_on_the_same_batch_in_changing_order() -> None:
    _, clock = timed(30)
    rounds = [clock.log[start : start + 3] for start in range(0, 90, 3)]
    for number, calls in enumerate(rounds):
        assert sorted(name for name, _ in calls) == ["a", "b", "c"]
        assert {width for _, width in calls} == {BATCHES[number % 3].items.shape[1]}
    orders = {tuple(name for name, _ in calls) for calls in rounds}
    assert len(orders) == 6


def test_warm_up_is_not_sampled() -> None:
    found, clock = timed(2, warmup=5)
    assert len(clock.log) == 3 * (5 + 2)
    assert len(found["a"]) == 2


def test_the_budget_ends_the_rounds_but_not_before_the_least_number() -> None:
    assert len(timed(100, budget=1e-9)[0]["a"]) == MIN_ROUNDS
    # a round costs 7, 14 or 21 ms: 42 ms for three, so 0.2 s are used up in round 15
    assert len(timed(100, budget=0.2)[0]["a"]) == 15
    assert len(timed(3, budget=1e-9)[0]["a"]) == 3


def of(samples: list[float], other: list[float] | None = None) -> Timed:
    seconds = {"x": np.array(samples), "y": np.array(other or samples)}
    return Timed(Load("real", 8, [HistoryArrays(np.array([[0, 1], [1, 1]]))]), 2, seconds)


@pytest.mark.parametrize(
    ("samples", "p95", "p99"), [(19, False, False), (20, True, False), (99, True, False), (100, True, True)]
)
def test_percentiles_are_absent_where_samples_are_too_few(samples: int, p95: bool, p99: bool) -> None:
    found = latency(of([0.001 * (i + 1) for i in range(samples)]), "x")
    assert found.samples == samples
    assert (found.p95_ms is not None, found.p99_ms is not None) == (p95, p99)
    assert ("p95_ms" in found.model_dump(exclude_none=True)) == p95


def test_numbers_of_one_candidate_by_hand() -> None:
    found = latency(of([0.002] * 90 + [0.1] * 10), "x")
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((2.0, 100.0, 100.0))
    assert found.users_per_second == pytest.approx(8 / 0.002)
    assert (found.load, found.batch, found.threads, found.length) == ("real", 8, 2, 1.5)


def test_speedup_is_the_ratio_of_medians_and_above_1_for_the_faster_one() -> None:
    found = speedup(of([0.001] * 10, [0.003] * 10), "x", "y", draws=100, seed=0)
    assert found.ratio == pytest.approx(3.0)
    assert found.ci95 == pytest.approx((3.0, 3.0))
    assert found.aa_floor is None


def test_interval_of_speed_stands_around_the_speed() -> None:
    samples = np.random.default_rng(0).uniform(0.001, 0.002, 30).tolist()
    interval = speed_interval(of(samples), "x", draws=200, seed=0)
    assert interval is not None
    assert interval[0] < latency(of(samples), "x").users_per_second < interval[1]
    assert speed_interval(of(samples[:3]), "x", draws=200, seed=0) is None
