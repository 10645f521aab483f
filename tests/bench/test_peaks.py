import itertools
from pathlib import Path

import numpy as np
import pytest

from bench import peaks
from bench.peaks import Bench, Trial, has, last_level_cache, multiplying, reading


def test_every_library_multiplies_the_same_matrices() -> None:
    trials = list(multiplying((5, 7, 3), threads=1))
    assert [trial.library for trial in trials] == ["numpy", "torch", "onnxruntime"]
    answers = [np.asarray(trial.run()).reshape(5, 3) for trial in trials]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-5)
    assert {trial.work for trial in trials} == {2 * 5 * 7 * 3}
    assert {trial.what for trial in trials} == {"gemm"}


def test_every_way_to_read_touches_the_whole_buffer() -> None:
    trials = list(reading(64 * 256 * 4, threads=1))
    assert [(trial.library, trial.how) for trial in trials] == [
        ("numpy", "matrix times vector"), ("torch", "matrix times vector"), ("torch", "sum"),
    ]  # fmt: skip
    assert {trial.work for trial in trials} == {64 * 256 * 4}
    by_vector, again, total = (np.asarray(trial.run()) for trial in trials)
    assert by_vector.tolist() == again.tolist() == [256.0] * 64
    assert float(total) == 64 * 256


def test_without_a_library_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "has", lambda library: library != "torch")
    assert [trial.library for trial in multiplying((2, 2, 2), threads=1)] == ["numpy", "onnxruntime"]
    assert {trial.library for trial in reading(4096, threads=1)} == {"numpy"}
    assert not has("no_such_library")


def test_rates_are_work_over_time_and_trials_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by 1 ms per reading: one run is 1 ms, so 4 runs are asked for a measurement."""
    ran: list[str] = []

    def trial(name: str, work: float) -> Trial:
        return Trial("gemm", name, "", (1, 1, 1), work, lambda: ran.append(name))

    ticks = itertools.count(step=1_000_000)
    monkeypatch.setattr(peaks.time, "perf_counter_ns", lambda: next(ticks))
    bench = Bench(threads=1)
    bench.trials = {("bandwidth", 1): [trial("a", 10.0)], (1, 1, 1): [trial("b", 20.0)]}
    found = bench.rates(buffer_bytes=1, shapes=[(1, 1, 1), (1, 1, 1)], repeats=3)
    assert [(t.library, rates) for t, rates in found] == [
        ("a", [pytest.approx(4 * 10 / 1e-3)] * 3), ("b", [pytest.approx(4 * 20 / 1e-3)] * 3),
    ]  # fmt: skip
    assert [name for name, _ in itertools.groupby(ran)] == ["a", "b"] * 4  # warm-up, then three turns


def test_what_is_measured_again_is_not_made_again() -> None:
    bench = Bench(threads=1)
    first = bench.rates(buffer_bytes=4096, shapes=[(4, 4, 4)], repeats=1)
    second = bench.rates(buffer_bytes=4096, shapes=[(4, 4, 4), (2, 3, 4)], repeats=2)
    assert [trial for trial, _ in first] == [trial for trial, _ in second][: len(first)]
    assert all(len(rates) == 2 and min(rates) > 0 for _, rates in second)
    assert {trial.shape for trial, _ in second} == {None, (4, 4, 4), (2, 3, 4)}


def test_the_last_cache_is_the_largest_that_tells_its_size(tmp_path: Path) -> None:
    for number, size in enumerate(("48K", "2048K", "32M", "what?", "")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    (tmp_path / "index9").mkdir()
    assert last_level_cache(tmp_path) == 32 << 20
    assert last_level_cache(tmp_path / "nothing") is None
