"""Scripts behind the results: what they count and how they judge."""

import itertools
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from tests.bench.reports import faster

SCRIPTS = Path(__file__).parents[2] / "docs" / "results" / "scripts"


@pytest.mark.parametrize(
    ("ci95", "aa_ci95", "detected", "covers"),
    [
        ((0.89, 0.93), (0.99, 1.01), True, True),
        ((0.60, 0.62), (0.99, 1.01), True, False),  # found, but not as it is: the machine was busy
        ((0.89, 0.93), (0.89, 1.10), False, True),  # the floor is small by luck
        ((0.90, 1.01), (0.99, 1.01), False, True),
    ],
)
def test_a_planted_slowdown_is_detected_beyond_the_noise_and_covered_by_its_interval(
    ci95: tuple[float, float], aa_ci95: tuple[float, float], detected: bool, covers: bool
) -> None:
    verdict = runpy.run_path(str(SCRIPTS / "bench_honesty.py"))["verdict"]
    found = verdict(faster(0.9, ci95, 0.001, aa_ci95=aa_ci95), 0.1)
    assert (found["detected"], found["covers"]) == (detected, covers)


def test_who_begins_a_round_of_training_steps_changes() -> None:
    steps: list[tuple[str, int]] = []

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def step(self, sequences: object, index: int, batch_size: int) -> None:
            steps.append((self.name, index))

    script = runpy.run_path(str(SCRIPTS / "training_depth.py"))
    script["interleave"]([Model("deep"), Model("shallow")], None, 2, 8)
    assert steps == [
        ("shallow", 0), ("deep", 0), ("deep", 1), ("shallow", 1), ("shallow", 2), ("deep", 2),
    ]  # fmt: skip


def test_the_making_of_batches_is_part_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(SCRIPTS / "training_depth.py"))
    now = itertools.count()  # one second for each look at the clock
    script["time"] = SimpleNamespace(perf_counter=lambda: float(next(now)))
    model = script["Trained"].__new__(script["Trained"])
    monkeypatch.setitem(script["Trained"].step.__globals__, "time", script["time"])
    model.seconds = []
    model.optimizer = SimpleNamespace(step=lambda: None, zero_grad=lambda: None)
    model.objective = SimpleNamespace(parameters=lambda: [])

    class Sequences:
        def epoch(self, *_: Any, **__: Any) -> Iterator[SimpleNamespace]:
            next(now), next(now)
            yield SimpleNamespace(batches=[], positions=1)

    model.step(Sequences(), 0, 8)
    assert model.seconds == [3.0]


@pytest.mark.parametrize(
    ("users", "ranks", "whole"),
    [
        (["a", "a", "b", "b"], [1, 2, 1, 2], True),
        (["a", "b", "b"], [1, 1, 2], True),  # fewer than k were left to recommend
        (["a", "a"], [1, 2], False),  # one is lost
        (["a", "a", "b", "b", "b", "b"], [1, 2, 1, 2, 1, 2], False),  # one is doubled
        (["a", "a", "c", "c"], [1, 2, 1, 2], False),
        (["a", "a", "b", "b", "b"], [1, 2, 1, 2, 3], False),
        (["a", "a", "b"], [1, 2, 2], False),
    ],
)
def test_a_lost_or_doubled_user_is_seen(
    tmp_path: Path, users: list[str], ranks: list[int], whole: bool
) -> None:
    check = runpy.run_path(str(SCRIPTS / "score_million.py"))["check"]
    pl.DataFrame({"user_id": users, "rank": ranks}).write_parquet(tmp_path / "top.parquet")
    assert check(tmp_path / "top.parquet", pl.Series("user_id", ["a", "b"]), 2)["every_user_once"] is whole


def test_times_are_divided_by_those_of_the_same_report_only() -> None:
    lines = runpy.run_path(str(SCRIPTS / "compression_table.py"))["lines"]

    def row(created: str, name: str, ms: float) -> dict[str, Any]:
        latency = [{"load": "real", "batch": 1, "p50_ms": ms}]
        quality = {"hr@10": 0.1, "ndcg@10": 0.05}
        candidate = {"name": name, "quality": quality, "slices": [], "latency": latency}
        return {"created": created, "evaluation": {"users": 9}, "candidate": candidate}

    rows = [
        row("a", "deep", 10.0), row("a", "student-onnx", 1.0), row("a", "int8", 0.8),
        row("b", "deep", 5.0), row("b", "student-onnx", 0.5), row("b", "zeros", 0.5),
    ]  # fmt: skip
    table = lines(rows, yardsticks=("deep", "student-onnx"), against="teacher", load="real")
    assert {line[0]: line[-2] for line in table} == {
        "deep": "5.00 (1.00x, 0.10x)",  # the newer report
        "student-onnx": "0.50 (10.0x, 1.00x)",
        "int8": "0.80 (12.5x, 1.25x)",  # a slower hour: divided by what was timed beside it
        "zeros": "0.50 (10.0x, 1.00x)",
    }
