import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import open_loop
from bench.open_loop import OpenLoopSamples, draw_requests, serve, together
from recommender.scoring import HistoryArrays
from tests.bench.simulated import HISTORIES, Simulated, affine, fixed


def mean_wait(samples: OpenLoopSamples, service: float) -> float:
    return float(np.mean(samples.latency_seconds)) - service


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_long_as_the_closed_form_of_m_d_1_says(load: float) -> None:
    """Pollaczek-Khinchine for constant service s: mean wait = load s / (2 (1 - load))."""
    service = 0.01
    found = Simulated(fixed(service)).serve(load / service, 600.0)
    assert found.unanswered == 0
    assert mean_wait(found, service) == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)


def test_latency_counts_from_the_arrival_and_so_includes_the_queue() -> None:
    found = Simulated(fixed(0.1)).serve(9.0, 100.0)
    assert np.median(found.latency_seconds) > 2 * np.median(found.call_seconds)
    assert found.latency_seconds.min() == pytest.approx(0.1)


def test_a_stall_of_the_server_is_seen_by_all_who_arrive_in_it() -> None:
    """A closed loop would have one slow sample; here a second without answers is 100 requests that wait."""
    stalls = iter([0.001] * 301 + [1.0])
    found = Simulated(lambda users: next(stalls, 0.001)).serve(100.0, 10.0)
    slow = found.latency_seconds > 0.1
    assert 60 < slow.sum() < 140
    assert np.median(found.latency_seconds[slow]) == pytest.approx(0.55, abs=0.15)


def test_latency_grows_with_the_load() -> None:
    means = [
        float(np.mean(Simulated(fixed(0.01)).serve(rate, 60.0).latency_seconds)) for rate in (20, 50, 80, 95)
    ]
    assert means == sorted(means)
    assert means[-1] > 3 * means[0]


def test_overload_grows_as_long_as_it_lasts() -> None:
    """At twice the capacity the queue is as long as half the time that has passed."""
    found = Simulated(fixed(0.01)).serve(200.0, 20.0, drain=0.0)
    answered = ~np.isnan(found.answered)
    waited = found.latency_seconds[answered]
    assert waited[-1] == pytest.approx(10.0, rel=0.1)
    assert np.polyfit(found.answered[answered], waited, 1)[0] == pytest.approx(0.5, rel=0.1)


def test_overload_ends_in_time_and_what_is_left_counts_as_unanswered() -> None:
    server = Simulated(fixed(0.01))
    found = server.serve(1000.0, 2.0, drain=1.0)
    assert server.now < 2.0 + 1.0 + 0.01 * 3
    assert found.unanswered == len(found.arrived) - len(found.call_sizes)
    assert found.unanswered == pytest.approx(2000 - 300, rel=0.1)
    assert np.isinf(found.latency_seconds).sum() == found.unanswered
    assert found.users_per_second == pytest.approx(100.0, rel=0.01)


def test_the_drain_lasts_as_long_as_the_window_unless_it_is_said_otherwise() -> None:
    server = Simulated(fixed(0.01))
    assert server.serve(150.0, 2.0).unanswered == 0
    assert Simulated(fixed(0.01)).serve(150.0, 2.0, drain=0.0).unanswered > 50


def test_answering_together_raises_what_can_be_kept_up_with() -> None:
    cost = affine(0.010, 0.001)  # alone 91 a second, 32 at a time 762 a second
    alone, batched = (Simulated(cost).serve(500.0, 20.0, batch=batch, drain=0.0) for batch in (1, 32))
    assert alone.users_per_second == pytest.approx(1 / 0.011, rel=0.02)
    assert batched.users_per_second == pytest.approx(500.0, rel=0.03)
    assert batched.call_sizes.max() <= 32
    assert batched.call_sizes.mean() > 5


def test_a_free_server_takes_all_that_waits_and_never_waits_for_more() -> None:
    server = Simulated(fixed(0.5))
    found = server.serve(20.0, 30.0, batch=4)
    for call, size in enumerate(found.call_sizes):
        first = int(found.call_sizes[:call].sum())
        began = found.answered[first] - found.call_seconds[call]
        waiting = int((found.arrived <= began + 1e-9).sum()) - first
        assert size == min(4, waiting)


def test_it_waits_only_until_the_next_arrival() -> None:
    server = Simulated(fixed(0.001))
    found = server.serve(10.0, 20.0)
    assert sum(server.waited) == pytest.approx(found.arrived[-1] - 0.001 * (len(found.arrived) - 1), rel=0.01)


def test_warm_up_calls_have_every_power_of_two_and_are_not_counted() -> None:
    server = Simulated(fixed(0.001))
    found = server.serve(100.0, 1.0, batch=6)
    assert [len(each.items) for each in server.batches[:4]] == [1, 2, 4, 6]
    assert found.call_sizes.sum() == len(found.arrived)
    assert len(server.batches) == 4 + len(found.call_sizes)


def test_the_same_seed_draws_the_same_requests_and_rates_scale_the_same_gaps() -> None:
    times, wanted = draw_requests(50.0, 10.0, 3, seed=1)
    again, same = draw_requests(50.0, 10.0, 3, seed=1)
    assert np.array_equal(times, again) and np.array_equal(wanted, same)
    faster, _ = draw_requests(100.0, 10.0, 3, seed=1)
    assert faster[: len(times)] == pytest.approx(times[: len(faster)] / 2)
    assert not np.array_equal(times, draw_requests(50.0, 10.0, 3, seed=2)[0])


def test_arrivals_are_poisson() -> None:
    times, wanted = draw_requests(200.0, 100.0, 3, seed=0)
    assert (np.diff(times) > 0).all() and times[0] >= 0 and times[-1] < 100.0
    counts = np.histogram(times, 1000, (0.0, 100.0))[0]
    assert counts.mean() == pytest.approx(20.0, rel=0.03)
    assert counts.var() == pytest.approx(20.0, rel=0.15)  # mean = variance
    assert np.bincount(wanted).tolist() == pytest.approx([len(times) / 3] * 3, rel=0.1)


def test_no_arrivals_give_no_samples() -> None:
    found = Simulated(fixed(0.001)).serve(0.001, 0.01)
    assert (len(found.arrived), len(found.call_sizes), found.unanswered, found.users_per_second) == (
        0,
        0,
        0,
        0.0,
    )


def test_histories_are_left_padded_together_with_seen_rows_and_times() -> None:
    found = together(HISTORIES)
    assert found.items.tolist() == [[1, 2, 3], [0, 0, 4], [0, 5, 6]]
    assert found.seen is not None and found.times is not None
    assert found.seen.tolist() == [[1, 2, 3, 9], [0, 0, 0, 4], [0, 0, 5, 6]]
    assert found.times.tolist() == [[10, 20, 30], [0, 0, 40], [0, 50, 60]]


def test_what_no_history_has_is_left_out_and_what_some_lack_is_an_error() -> None:
    bare = [HistoryArrays(each.items) for each in HISTORIES]
    assert together(bare).seen is None and together(bare).times is None
    with pytest.raises(ValueError, match="some histories have seen rows and others have none"):
        together([HISTORIES[0], bare[1]])


def test_each_request_is_answered_with_its_own_history() -> None:
    server = Simulated(fixed(0.05))
    found = server.serve(60.0, 5.0, batch=8)
    _, wanted = draw_requests(60.0, 5.0, len(HISTORIES), seed=0)
    served = [row[row > 0].tolist() for each in server.batches[4:] for row in each.items]
    assert served == [HISTORIES[index].items[0].tolist() for index in wanted]
    assert found.length == pytest.approx(np.mean([len(row) for row in served]))


@pytest.mark.parametrize(
    ("histories", "numbers"),
    [
        ([], {}),
        ([HistoryArrays(np.ones((2, 3), np.int64))], {}),
        (HISTORIES, {"rate": 0.0}),
        (HISTORIES, {"rate": float("nan")}),
        (HISTORIES, {"seconds": -1.0}),
        (HISTORIES, {"batch": 0}),
    ],
)
def test_what_cannot_be_served_is_an_error(histories: list[HistoryArrays], numbers: dict[str, float]) -> None:
    given = {"k": 1, "rate": 1.0, "seconds": 1.0, "batch": 1, "seed": 0, **numbers}
    with pytest.raises(ValueError, match=r"history|above 0"):
        serve(Simulated(fixed(0.1)), histories, **given)  # type: ignore[arg-type]


def test_a_scorer_that_raises_is_not_hidden() -> None:
    def broken(users: int) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Simulated(broken).serve(10.0, 1.0)


def test_a_child_that_serves_needs_numpy_only() -> None:
    """What the file imports is the standard library, numpy and the protocols, which import numpy only."""
    source = ast.parse(Path(inspect.getfile(open_loop)).read_text())
    roots = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    assert {name for name in roots if name and name.split(".")[0] in {"bench", "recommender"}} == {
        "recommender.scoring"
    }
    code = "import sys, json, bench.open_loop; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"torch", "polars", "pydantic", "onnxruntime"} & set(loaded)


def test_pausing_ends_after_the_asked_time_and_sleeps_most_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0], []

    def tick() -> int:
        now[0] += 100_000
        return now[0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += round(seconds * 1e9)

    monkeypatch.setattr(open_loop.time, "perf_counter_ns", tick)
    monkeypatch.setattr(open_loop.time, "sleep", sleep)
    open_loop.pause(0.01)
    assert slept == pytest.approx([0.009])
    assert 10_000_000 <= now[0] <= 10_400_000
    open_loop.pause(0.0005)
    assert len(slept) == 1
