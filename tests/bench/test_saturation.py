from collections.abc import Callable

import numpy as np
import pytest

from bench.config import OpenLoopSettings
from bench.open_loop import OpenLoopSamples
from bench.report.schema import Latency
from bench.saturation import (
    Ask,
    OpenLoopResult,
    expectation,
    kept_up,
    open_loop_row,
    probe,
    window_seconds,
)
from tests.bench.simulated import Simulated, affine, fixed

SERVICE = 0.01  # one at a time: 100 a second


def closed(
    users_per_second: float, *, p50_ms: float = SERVICE * 1e3, batch: int = 1, load: str = "real"
) -> Latency:
    return Latency.model_validate(
        {"load": load, "length": 3.0, "batch": batch, "threads": 2, "p50_ms": p50_ms,
         "users_per_second": users_per_second, "samples": 50}
    )  # fmt: skip


def asking(cost: Callable[[int], float], *, batch: int = 1, log: list[float] | None = None) -> Ask:
    def ask(rate: float, seconds: float) -> OpenLoopSamples:
        if log is not None:
            log.append(rate)
        return Simulated(cost).serve(rate, seconds, batch=batch)

    return ask


def settings(**more: object) -> OpenLoopSettings:
    return OpenLoopSettings.model_validate({"max_batch": 1, "seconds": 20.0, "limit_factor": 10, **more})


def find(cost: Callable[[int], float], *, capacity: float = 100.0, **more: object) -> OpenLoopResult:
    chosen = settings(**more)
    ask = asking(cost, batch=chosen.max_batch)
    return probe(ask, chosen, candidate="student", closed=[closed(capacity)])


def samples(
    latency: np.ndarray, *, seconds: float = 10.0, rate: float = 20.0, call: float = 0.001
) -> OpenLoopSamples:
    arrived = np.linspace(0.0, seconds, len(latency), endpoint=False)
    calls = np.ones(len(latency), np.int64)
    return OpenLoopSamples(
        rate, seconds, 1, 3.0, arrived, arrived + latency, calls, np.full(len(latency), call)
    )


def test_a_rate_far_below_capacity_is_kept_up_with_and_one_above_it_is_not() -> None:
    ask = asking(fixed(SERVICE))
    assert kept_up(ask(50.0, 20.0), limit_seconds=0.1) is True
    assert kept_up(ask(120.0, 20.0), limit_seconds=0.1) is False


def test_a_wide_limit_does_not_hide_a_queue_that_grows() -> None:
    """5% too much: after 20 s a request waits 1 s, far below the limit, but 1 in 20 is left over."""
    found = Simulated(fixed(SERVICE)).serve(105.0, 20.0)
    assert found.unanswered == 0 and found.latency_seconds.max() < 5.0
    assert kept_up(found, limit_seconds=60.0) is False


def test_two_calls_beyond_the_window_are_in_time() -> None:
    """A call of 1 s in a window of 10 s: what arrived last is answered later, without any queue."""
    slow = samples(np.full(200, 1.0), call=1.0)
    assert kept_up(slow, limit_seconds=2.0) is True
    assert kept_up(samples(np.full(200, 1.0), call=0.01), limit_seconds=2.0) is False


def test_one_in_a_hundred_may_be_late_but_not_two() -> None:
    latency = np.full(1000, 0.001)
    latency[500:510] = 1.0
    assert kept_up(samples(latency), limit_seconds=0.1) is True
    latency[510] = 1.0
    assert kept_up(samples(latency), limit_seconds=0.1) is False


def test_requests_without_an_answer_are_infinitely_slow() -> None:
    latency = np.full(1000, 0.001)
    latency[500:520] = np.nan
    assert kept_up(samples(latency), limit_seconds=1e9) is False
    row = open_loop_row(samples(latency), False, threads=1)
    assert row is not None
    assert (row.unanswered, row.samples, row.p99_ms) == (20, 1000, None)
    assert row.p95_ms == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("count", "p95", "p99"), [(19, False, False), (20, True, False), (99, True, False), (100, True, True)]
)
def test_percentiles_and_the_verdict_are_absent_where_requests_are_too_few(
    count: int, p95: bool, p99: bool
) -> None:
    found = samples(np.full(count, 0.001))
    row = open_loop_row(found, None, threads=1)
    assert row is not None
    assert (row.p95_ms is not None, row.p99_ms is not None) == (p95, p99)
    assert (kept_up(found, limit_seconds=1.0) is not None) == p99


def test_a_row_holds_what_was_offered_and_what_was_answered() -> None:
    row = open_loop_row(Simulated(fixed(SERVICE)).serve(50.0, 20.0), True, threads=3)
    assert row is not None
    assert (row.load, row.rate, row.threads, row.batch, row.kept_up, row.unanswered) == (
        "open-loop", 50.0, 3, 1, True, 0,
    )  # fmt: skip
    assert row.users_per_second == pytest.approx(50.0, rel=0.1)
    assert row.p50_ms >= SERVICE * 1e3
    assert row.p99_ms is not None and row.p95_ms is not None
    assert row.p50_ms < row.p95_ms < row.p99_ms


def test_a_row_without_a_median_is_absent_and_said() -> None:
    """Ten times too much: nine of ten are never answered."""
    found = find(fixed(SERVICE), capacity=1000.0, rates=[1.0], search_steps=0)
    assert found.rows == [] and found.saturation is None
    assert any("had no answer, so there is no median" in note for note in found.notes)
    assert any("lowest rate that was tried, were not kept up with" in note for note in found.notes)


def test_the_saturation_point_lies_below_capacity_and_close_to_the_rate_that_failed() -> None:
    """M/D/1: P(wait > t) falls by about 2 (1 - load) / load per service time, so a p99 of 10 service times
    is reached at a load of 0.80."""
    found = find(fixed(SERVICE))
    assert found.saturation is not None and found.notes == []
    at = found.saturation.users_per_second
    assert at == pytest.approx(80.0, rel=0.06)
    failed = [row.rate for row in found.rows if row.kept_up is False and row.rate is not None]
    assert at < min(failed) <= at * 1.05 + 1e-9
    assert found.saturation.limit_ms == pytest.approx(10 * SERVICE * 1e3)


def test_a_rate_above_capacity_is_reported_as_not_kept_up_with() -> None:
    found = find(fixed(SERVICE), rates=[0.5, 1.3])
    verdicts = {row.rate: row.kept_up for row in found.rows}
    assert verdicts[50.0] is True
    assert verdicts[130.0] is False
    row = next(row for row in found.rows if row.rate == 130.0)
    assert row.users_per_second == pytest.approx(100.0, rel=0.02)
    assert row.p50_ms > 10 * SERVICE * 1e3


@pytest.mark.parametrize("misjudged", [20.0, 500.0])
def test_a_closed_loop_that_misjudges_capacity_is_corrected(misjudged: float) -> None:
    found = find(fixed(SERVICE), capacity=misjudged)
    assert found.saturation is not None
    assert found.saturation.users_per_second == pytest.approx(80.0, rel=0.06)


@pytest.mark.slow
def test_a_tighter_limit_saturates_earlier() -> None:
    loose, tight = (find(fixed(SERVICE), limit_ms=limit, seconds=10.0).saturation for limit in (200.0, 25.0))
    assert loose is not None and tight is not None
    assert tight.users_per_second < 0.8 * loose.users_per_second
    assert tight.limit_ms == 25.0


@pytest.mark.slow
def test_batching_raises_the_saturation_point() -> None:
    cost = affine(0.01, 0.001)
    one, many = (find(cost, max_batch=batch, capacity=90.0, seconds=6.0).saturation for batch in (1, 32))
    assert one is not None and many is not None
    assert many.users_per_second > 3 * one.users_per_second
    assert (one.batch, many.batch) == (1, 32)


def test_without_a_rate_that_fails_there_is_no_saturation_point() -> None:
    found = find(fixed(1e-5), search_steps=1)
    assert found.saturation is None
    assert found.notes == [
        "No saturation point of student: 150 requests per second, the highest rate that was tried, were kept "
        "up with."
    ]


def test_a_candidate_too_slow_for_a_percentile_gets_no_verdict_and_no_saturation_point() -> None:
    found = find(fixed(2.0), capacity=0.5, seconds=5.0)
    assert found.saturation is None
    assert all(row.kept_up is None and row.p99_ms is None for row in found.rows)
    assert found.notes[0].endswith("fewer than 100 came within 30 s (max_seconds).")


def test_one_hiccup_is_tried_again_and_a_second_one_is_believed() -> None:
    def hiccup_at(bad: set[int]) -> tuple[Ask, list[float]]:
        log: list[float] = []

        def ask(rate: float, seconds: float) -> OpenLoopSamples:
            log.append(rate)
            cost = 0.5 if len(log) in bad else SERVICE
            return Simulated(fixed(cost)).serve(rate, seconds)

        return ask, log

    for bad, expected in ({1}, True), ({1, 2}, False):
        ask, log = hiccup_at(bad)
        chosen = settings(rates=[0.3], search_steps=0)
        found = probe(ask, chosen, candidate="x", closed=[closed(100.0)])
        assert log == [30.0, 30.0]
        assert [row.kept_up for row in found.rows] in ([expected], [])
        assert (found.saturation is None) is True  # one side is unknown either way
    ask, log = hiccup_at({1})
    probe(ask, settings(rates=[0.3], search_steps=0, retries=0), candidate="x", closed=[closed(100.0)])
    assert log == [30.0]


def test_rates_above_a_known_failure_are_measured_once() -> None:
    log: list[float] = []
    chosen = settings(rates=[1.2, 1.5], search_steps=0)
    probe(asking(fixed(SERVICE), log=log), chosen, candidate="x", closed=[closed(100.0)])
    assert log == [120.0, 120.0, 150.0]


def test_a_success_above_a_failure_does_not_count() -> None:
    """0.6 fails twice, 0.7 passes: what is kept up with lies below the failure."""

    def ask(rate: float, seconds: float) -> OpenLoopSamples:
        return Simulated(fixed(0.5 if rate == 60.0 else SERVICE)).serve(rate, seconds)

    chosen = settings(rates=[0.5, 0.6, 0.7], search_steps=0)
    found = probe(ask, chosen, candidate="x", closed=[closed(100.0)])
    assert found.saturation is not None
    assert found.saturation.users_per_second == 50.0
    assert (
        "x did not keep up with 60 requests per second but did with 70: something else was at work on the "
        "machine, and the lower rate counts."
    ) in found.notes


def test_rows_ascend_and_every_rate_stands_once() -> None:
    rates = [row.rate for row in find(fixed(SERVICE), rates=[1.0, 0.3, 0.7]).rows]
    assert rates == sorted(set(rates), key=lambda rate: rate or 0.0)
    assert {30.0, 70.0, 100.0} <= set(rates)


def test_the_search_ends_after_its_steps() -> None:
    log: list[float] = []
    chosen = settings(rates=[0.5], search_steps=3, resolution=0.0001)
    probe(asking(fixed(SERVICE), log=log), chosen, candidate="x", closed=[closed(100.0)])
    assert len(set(log)) == 4


def test_windows_are_long_enough_for_a_percentile_and_short_enough_for_memory() -> None:
    chosen = settings(seconds=5.0, max_seconds=30.0)
    assert window_seconds(1000.0, chosen) == 5.0
    assert window_seconds(10.0, chosen) == 15.0
    assert window_seconds(1.0, chosen) == 30.0
    assert window_seconds(1e6, chosen) == pytest.approx(0.1)


def test_what_to_expect_comes_from_real_histories_and_batches_that_are_allowed() -> None:
    rows = [
        closed(100.0, p50_ms=10.0, batch=1),
        closed(400.0, p50_ms=80.0, batch=32),
        closed(900.0, p50_ms=300.0, batch=256),
        closed(50.0, p50_ms=20.0, batch=1, load="full"),
    ]
    assert expectation(rows, 32) == (400.0, 80.0)
    assert expectation(rows, 1) == (100.0, 10.0)
    assert expectation(rows, 1000) == (900.0, 300.0)
    assert expectation(rows[2:3], 32) == (900.0, 300.0)
    assert expectation(rows[3:], 32) == (50.0, 20.0)
    with pytest.raises(ValueError, match="closed-loop rows first"):
        expectation([closed(1.0, load="open-loop")], 32)
