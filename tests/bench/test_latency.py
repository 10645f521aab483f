from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from bench.child import Call, ChildFailed
from bench.compare import MIN_ROUNDS
from bench.crew import TWIN
from bench.latency import Timed, Turn, latency, measure, speed_interval, speedup
from bench.loads import Load
from bench.timing import as_timed
from recommender.scoring import HistoryArrays

WIDTHS = (1, 2, 3)


@dataclass
class Clock:
    """Time that passes only when a candidate says so."""

    now: int = 0
    log: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now


def turn(name: str, milliseconds: float, clock: Clock, batch: int) -> Call:
    """A call that takes a known time per column of its batch."""
    took = round(milliseconds * 1e6) * WIDTHS[batch]
    clock.now += took
    clock.log.append((name, batch))
    return Call(took, None, True)


@dataclass
class Run:
    """What came of rounds of three candidates."""

    calls: dict[str, list[Call]]
    clock: Clock
    failed: dict[str, str]

    def seconds(self, name: str) -> list[float]:
        return [call.ns / 1e9 for call in self.calls[name]]


def timed(rounds: int, *, budget: float = 1e9, failing: int | None = None) -> Run:
    """`failing`: the call in which b fails."""
    clock = Clock()
    failed: dict[str, str] = {}
    turns: dict[str, Turn] = {
        name: partial(turn, name, cost, clock) for name, cost in {"a": 1, "b": 4, "c": 2}.items()
    }

    def sometimes(batch: int) -> Call:
        if failing is not None and sum(name == "b" for name, _ in clock.log) == failing:
            raise ChildFailed("crashed", "was ended")
        return turn("b", 4, clock, batch)

    turns["b"] = sometimes
    calls = measure(
        turns, batches=3, rounds=rounds, seed=0, budget_seconds=budget, clock=clock,
        fail=lambda name, failure: failed.update({name: failure.text}),
    )  # fmt: skip
    return Run(calls, clock, failed)


def test_each_sample_is_the_time_that_the_child_measured() -> None:
    found = timed(4)
    assert found.seconds("a") == pytest.approx([0.001, 0.002, 0.003, 0.001])
    assert found.seconds("b") == pytest.approx([0.004, 0.008, 0.012, 0.004])


def test_every_round_gives_each_candidate_one_turn_on_the_same_batch_in_changing_order() -> None:
    clock = timed(30).clock
    rounds = [clock.log[start : start + 3] for start in range(0, 90, 3)]
    for number, calls in enumerate(rounds):
        assert sorted(name for name, _ in calls) == ["a", "b", "c"]
        assert {batch for _, batch in calls} == {number % 3}
    orders = {tuple(name for name, _ in calls) for calls in rounds}
    assert len(orders) == 6


def test_of_several_calls_in_a_row_the_last_is_the_sample() -> None:
    clock = Clock()
    calls_made = iter(range(1, 100))
    calls = measure(
        {"a": lambda batch: turn("a", next(calls_made), clock, 0)}, batches=1, rounds=3, seed=0,
        budget_seconds=1e9, clock=clock, fail=lambda name, failure: None, in_a_row=4,
    )  # fmt: skip
    assert [call.ns / 1e6 for call in calls["a"]] == [4, 8, 12]
    row = latency(as_timed(LOAD, 1, calls, "a", 4), "a")
    assert (row.samples, row.in_a_row) == (3, 4)
    assert latency(as_timed(LOAD, 1, calls, "a"), "a").in_a_row is None


def test_the_budget_ends_the_rounds_but_not_before_the_least_number() -> None:
    assert len(timed(100, budget=1e-9).calls["a"]) == MIN_ROUNDS
    # a round costs 7, 14 or 21 ms: 42 ms for three, so 0.2 s are used up in round 15
    assert len(timed(100, budget=0.2).calls["a"]) == 15
    assert len(timed(3, budget=1e-9).calls["a"]) == 3


def test_a_candidate_that_fails_is_left_out_and_the_others_go_on_with_all_rounds() -> None:
    found = timed(9, failing=4)
    assert found.failed == {"b": "was ended"}
    assert set(found.calls) == {"a", "c"}
    assert len(found.calls["a"]) == len(found.calls["c"]) == 9


def test_when_all_have_failed_the_rounds_end() -> None:
    def broken(batch: int) -> Call:
        raise ChildFailed("hung", "gave no answer")

    failed: list[str] = []
    found = measure(
        {"a": broken}, batches=1, rounds=5, seed=0, budget_seconds=1, clock=Clock(),
        fail=lambda name, _: failed.append(name),
    )  # fmt: skip
    assert (found, failed) == ({}, ["a"])


LOAD = Load("real", 32, [HistoryArrays(np.ones((32, 5), dtype=np.int64))])


def honest(slower: float, *, rounds: int = 100, seed: int = 0) -> Timed:
    """Rounds of a reference, its twin, and the same thing `slower` times as slow, on a machine with noise.

    Noise: 3% jitter of each call, a disturbance that lasts some rounds, and rare calls that take five times
    as long.
    """
    rng = np.random.default_rng(seed)
    drift = 1 + 0.2 * (np.sin(np.arange(rounds) / 7) > 0.5)
    costs = {"x": 1.0, "x" + TWIN: 1.0, "y": slower}
    done = dict.fromkeys(costs, 0)

    def call(name: str, batch: int) -> Call:
        number = done[name]
        done[name] += 1
        noise = rng.normal(1, 0.03) * drift[number] * (5 if rng.random() < 0.02 else 1)
        return Call(round(1e6 * costs[name] * noise), None, True)

    turns: dict[str, Turn] = {name: partial(call, name) for name in costs}
    calls = measure(
        turns, batches=1, rounds=rounds, seed=seed, budget_seconds=1, clock=Clock(), fail=lambda *_: None
    )
    return as_timed(LOAD, 1, calls, "x")


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slowdown_of_ten_percent_is_detected(seed: int) -> None:
    found = speedup(honest(1.1, seed=seed), "y", "x", draws=2000, seed=0)
    assert found.ci95 is not None and found.aa_floor is not None
    assert found.ci95[1] < 1, "the interval of the speed-up excludes 1"
    assert found.aa_floor < 0.05 < 1 - found.ratio


@pytest.mark.parametrize("seed", range(5))
def test_no_slowdown_is_detected_where_none_was_planted(seed: int) -> None:
    found = speedup(honest(1.0, seed=seed), "y", "x", draws=2000, seed=0)
    assert found.ci95 is not None and found.ci95[0] < 1.01 and found.ci95[1] > 0.99
    assert abs(found.ratio - 1) < 0.03


def test_the_floor_is_the_difference_of_the_reference_from_itself_in_the_same_rounds() -> None:
    seconds = {"x": np.full(10, 0.002), "y": np.full(10, 0.001)}
    found = speedup(Timed(LOAD, 1, seconds, twin=np.full(10, 0.0016)), "y", "x", draws=100, seed=0)
    assert found.aa_floor == pytest.approx(0.25)
    assert found.aa_ci95 == pytest.approx((1.25, 1.25))
    assert found.ratio == pytest.approx(2.0)


def test_the_twin_is_no_candidate() -> None:
    found = as_timed(LOAD, 1, {"x": [Call(5, 1.5, True)], "x" + TWIN: [Call(7, 1.5, True)]}, "x")
    assert list(found.seconds) == ["x"] == list(found.device_ms)
    assert found.twin is not None and found.twin.tolist() == [7e-9]
    assert latency(found, "x").device_ms == 1.5


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
