from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import energy
from bench.child import Call, ChildFailed
from bench.crew import TWIN, Crew, Limits
from bench.loads import Load
from bench.open_loop import OpenLoopSamples
from bench.report.files import read
from bench.report.notes import notes
from bench.report.schema import Report
from bench.stage import run
from bench.timing import Timings, _open_loops, _Power, time_cell
from recommender.scoring import HistoryArrays
from tests.bench.conftest import bench_context, quick, three_candidates

LOAD = Load("full", 4, [HistoryArrays(np.ones((4, 3), dtype=np.int64))] * 2)


@dataclass
class FakeChild:
    """What a child says, without a process."""

    name: str
    ns: int = 1_000_000
    rested: bool = True
    fails_at: int | None = None
    calls: list[int] = field(default_factory=list)
    ended: bool = False

    def load(self, batches: Any, *, seconds: float) -> None:
        self.calls.clear()

    def call(self, batch: int, k: int, *, seconds: float) -> Call:
        if len(self.calls) == self.fails_at:
            raise ChildFailed("crashed", "was ended by SIGSEGV")
        self.calls.append(batch)
        return Call(self.ns, None, self.rested, 0 if self.rested else 5)

    def burst(self, k: int, *, lasting: float, seconds: float) -> tuple[float, int]:
        return 2.0, 800

    def end(self) -> None:
        self.ended = True


def crew_of(*children: FakeChild) -> Crew:
    crew = Crew(Limits(opening=1, call=1), threads=1)
    crew.children.update({each.name: each for each in children})  # type: ignore[misc]
    return crew


def test_warm_up_is_timed_apart_and_is_not_sampled() -> None:
    crew = crew_of(FakeChild("x", ns=5_000_000))
    found = time_cell(crew, LOAD, "x", k=2, rounds=4, warmup=3, seed=0, budget_seconds=10)
    assert len(found.seconds["x"]) == 4
    assert crew.warming_seconds == {"x": pytest.approx(0.015)}
    time_cell(crew, LOAD, "x", k=2, rounds=4, warmup=1, seed=0, budget_seconds=10)
    assert crew.warming_seconds == {"x": pytest.approx(0.020)}


def test_a_candidate_that_failed_once_is_asked_no_more() -> None:
    good, bad = FakeChild("x"), FakeChild("y", fails_at=2)
    crew = crew_of(good, bad)
    first = time_cell(crew, LOAD, "x", k=2, rounds=6, warmup=0, seed=0, budget_seconds=10)
    second = time_cell(crew, LOAD, "x", k=2, rounds=6, warmup=0, seed=0, budget_seconds=10)
    assert set(first.seconds) == set(second.seconds) == {"x"}
    assert bad.ended and not good.ended
    assert {name: failure.text for name, failure in crew.failures.items()} == {"y": "was ended by SIGSEGV"}
    crew.__exit__(None, None, None)
    assert good.ended


def test_calls_after_which_threads_still_ran_are_counted() -> None:
    crew = crew_of(FakeChild("x"), FakeChild("y", rested=False))
    time_cell(crew, LOAD, "x", k=2, rounds=6, warmup=2, seed=0, budget_seconds=10)
    assert crew.restless == {"x": 0, "y": 6}
    assert crew.called_ns == {"x": 6_000_000, "y": 6_000_000} and crew.waited_ns == {"x": 0, "y": 30}


def report_notes(**counts: Any) -> str:
    nothing: dict[str, Any] = {
        "opening_seconds": {}, "warming_seconds": {}, "restless": {}, "called_ns": {}, "waited_ns": {},
        "peaks": {}, "devices": {}, "cells": [], "failures": {}, "twin_failed": None,
    }  # fmt: skip
    timings = Timings(threads=2, cores=[0], **{**nothing, **counts})
    return " ".join(notes(timings, {}, "x", draws=100, seed=0))


def test_turns_of_several_calls_are_told_of() -> None:
    crew = crew_of(FakeChild("x"))
    cell = time_cell(crew, LOAD, "x", k=2, rounds=4, warmup=0, seed=0, budget_seconds=10, in_a_row=5)
    assert cell.in_a_row == 5 and len(cell.seconds["x"]) == 4
    assert "Each turn had 5 calls" in report_notes(cells=[cell])
    assert "calls, of which" not in report_notes()


def test_a_machine_that_is_not_quiet_is_told_of() -> None:
    called = {"x": 600, "y": 400}
    busy = report_notes(called_ns=called, waited_ns={"x": 200, "y": 50})
    assert "not quiet" in busy and "kept from a core for 0.250 s" in busy
    assert "not quiet" not in report_notes(called_ns=called, waited_ns={"x": 9, "y": 0})


def test_threads_that_do_not_rest_are_told_of_and_too_few_cores_too() -> None:
    said = report_notes(restless={"x": 0, "y": 3})
    assert "Threads still ran when the call had ended" in said and "(calls): y 3." in said
    assert "pinned to the same cores (0), with 2 threads" in said and "more threads than cores" in said


@dataclass
class Meter:
    """A counter that counts 50 J between two readings."""

    source: energy.Source = "rapl"
    readings: int = 0

    def read(self) -> tuple[int, ...]:
        self.readings += 1
        return (self.readings,)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        return 50.0 * (after[0] - before[0])


def test_energy_is_that_of_a_run_of_calls_of_one_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    monkeypatch.setattr(energy, "meter", lambda device, note: meter)
    power = _Power(quick(), {"x": "cpu", "y": "cpu"})
    power.measure(crew_of(FakeChild("x"), FakeChild("x" + TWIN), FakeChild("y")), LOAD, 2)
    assert set(power.found) == {"x", "y"} and meter.readings == 4
    found = power.found["x"][0]
    assert (found.watts, found.joules_per_user, found.batch) == (25.0, 50 / 800, 4)


class Failing(Meter):
    """A counter that fails at its third reading."""

    def read(self) -> tuple[int, ...]:
        if self.readings == 2:
            raise PermissionError(13, "Permission denied", "energy_uj")
        return super().read()


def test_a_counter_that_fails_on_the_way_ends_the_energy_and_not_the_bench(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(energy, "meter", lambda device, note: Failing() if device == "cpu" else Meter())
    power, crew = _Power(quick(), {"x": "cpu", "y": "cuda"}), crew_of(FakeChild("x"), FakeChild("y"))
    for _ in range(3):
        power.measure(crew, LOAD, 2)
    assert {name: len(found) for name, found in power.found.items()} == {"x": 1, "y": 3}
    (note,) = power.notes
    assert note.startswith("Energy of x was not measured to the end: energy_uj cannot be read")
    assert set(crew.children) == {"x", "y"} and not crew.failures


def test_requests_at_a_rate_have_the_time_of_their_warm_up_and_of_the_last_call(tmp_path: Path) -> None:
    limits: list[float] = []

    class Server(FakeChild):
        def open_loop(self, *, seconds: float, **said: Any) -> OpenLoopSamples:
            limits.append(seconds)
            nothing = np.empty(0)
            return OpenLoopSamples(
                rate=said["rate"], seconds=said["lasting"], batch=said["batch"], length=1.0,
                arrived=nothing, answered=nothing, call_sizes=nothing.astype(np.int64), call_seconds=nothing,
            )  # fmt: skip

    crew = crew_of(Server("x"))
    crew.limits = Limits(opening=100, call=7)
    cell = time_cell(crew, replace(LOAD, name="real", batch=1), "x", k=2, rounds=4, warmup=0, seed=0,
                     budget_seconds=10)  # fmt: skip
    config = quick(open_loop={"rates": [0.1], "max_batch": 32, "search_steps": 0})
    _open_loops(config, crew, [cell], bench_context(tmp_path, {1: {}}))
    warm_up_calls = 6  # of 1, 2, 4, 8, 16 and 32 requests
    assert limits and min(limits) >= warm_up_calls * 100 + 7


def test_energy_is_not_read_when_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "meter", lambda *_, **__: pytest.fail("was read"))
    assert _Power(quick(energy=False), {"x": "cpu"}).meters == {}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A bench with an open loop and a price."""
    folder = tmp_path_factory.mktemp("open-loop")
    found = three_candidates(folder)
    config = quick(
        compare=["teacher", "student"], batch_sizes=[1], loads=["real"], samples=0,
        open_loop={"rates": [0.1, 0.2], "seconds": 0.1, "max_seconds": 0.2, "search_steps": 0},
        cost={"price_per_hour": 2.0, "watts": 100.0, "currency": "EUR"},
    )  # fmt: skip
    context = bench_context(folder, {1: found})
    run(config, found, context)
    return read(context.folder)


def test_an_open_loop_adds_a_row_or_a_reason_for_each_rate_to_each_candidate(loaded: Report) -> None:
    notes = loaded.sections.notes or []
    for each in loaded.candidates:
        loads = [row.load for row in each.latency]
        rates = [row.rate for row in each.latency if row.rate is not None]
        missing = [note for note in notes if note.startswith(f"{each.name} at ")]  # of a busy machine
        assert loads == ["real"] + ["open-loop"] * len(rates)
        assert rates == sorted(rates) and len(rates) + len(missing) == 2


def test_the_twin_is_asked_no_rates_and_an_open_loop_has_no_speedup(loaded: Report) -> None:
    assert [each.name for each in loaded.candidates] == ["teacher", "student"]
    assert [each.load for each in loaded.comparisons[0].speedup] == ["real"]


def test_the_cost_card_turns_throughput_into_money_and_energy(loaded: Report) -> None:
    cost = loaded.sections.cost
    assert cost is not None and cost.currency == "EUR"
    row = next(each for each in cost.rows if each.candidate == "student" and each.load == "real")
    assert row.users_per_currency_unit == pytest.approx(row.users_per_second * 3600 / 2)
    assert row.users_per_watt_hour == pytest.approx(row.users_per_second * 36)


def test_without_a_counter_the_report_says_why_there_is_no_energy(tmp_path: Path, loaded: Report) -> None:
    said = any("Energy on cpu was not measured" in note for note in loaded.sections.notes or [])
    assert said == all(each.energy is None for each in loaded.candidates)
