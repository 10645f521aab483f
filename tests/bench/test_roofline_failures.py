"""What fails while calls are taken apart: it is said, and costs the rest of the bench nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import roofline as subject
from bench import session
from bench.candidates import resolve
from bench.child import ChildFailed
from bench.latency import Timed
from bench.loads import Load
from bench.report.files import read
from bench.stage import run
from recommender.errors import InputError
from recommender.models.build import build_model
from recommender.models.cost import cost_card
from recommender.stage import Bound
from tests.bench.conftest import bench_context, three_candidates
from tests.bench.exported import BATCH, CONFIG, quick, student_bounds, with_cost


@pytest.fixture(scope="module")
def bounds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bound]:
    return student_bounds(tmp_path_factory.mktemp("real"))


def newer(bounds: Mapping[str, Bound], folder: Path) -> Bound:
    """An artifact whose cost formulas were written by a later version."""
    card = cost_card(build_model(CONFIG, n_items=8, max_length=4, seed=1).eval())
    assert card is not None
    return with_cost(bounds["unknown"].path, folder, "newer", {**card, "version": 2})


def test_formulas_that_cannot_be_read_are_refused_before_anything_is_timed(
    bounds: Mapping[str, Bound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: Any) -> None:
        raise AssertionError("timed before the formulas were read")

    monkeypatch.setattr(session, "time_all", timed)
    found = {"newer": newer(bounds, tmp_path)}
    context = bench_context(tmp_path, {5: found})
    with pytest.raises(InputError, match=r"formulas of 'newer' cannot be read \(cost.version: .*1") as raised:
        run(quick(["newer"]), found, context)
    assert raised.value.fix is not None and "export the artifact again" in raised.value.fix
    assert list(context.folder.iterdir()) == []
    with pytest.raises(AssertionError, match="timed before"):
        run(quick(["newer"], roofline=None), found, context)  # nobody wants to know them


def test_a_manifest_that_breaks_meanwhile_costs_its_candidate_the_bounds_only(
    bounds: Mapping[str, Bound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "formulas_of", lambda _: None)  # they could be read at the start
    found = {"newer": newer(bounds, tmp_path), "student": bounds["student"]}
    context = bench_context(tmp_path, {5: found})
    run(quick(["newer", "student"], batch_sizes=[1]), found, context)
    report = read(context.folder)
    assert all(each.failed is None and each.latency and each.quality for each in report.candidates)
    section = report.sections.roofline
    assert section is not None and [row.candidate for row in section.rows] == ["student"]
    assert list(section.missing) == ["newer"]
    assert "it was not taken apart to the end: InputError: " in section.missing["newer"]
    assert "formulas of 'newer' cannot be read" in section.missing["newer"]


@pytest.mark.parametrize("error", [InputError("not here", where="there"), KeyError("parts")])
def test_whatever_is_raised_while_a_candidate_is_taken_apart_is_said(
    error: Exception, bounds: Mapping[str, Bound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(found: subject.Measured, *_: Any) -> None:
        found.splits["full", 1] = kept
        raise error

    class OnCpu:
        devices: Mapping[str, str] = {"known": "cpu"}

    kept = subject.Split("hooks", [1.0], [{"blocks": 1.0}], None)
    monkeypatch.setattr(subject, "_take_apart", fail)
    (candidate,) = resolve(["known"], {5: bounds})
    cell = Timed(Load("full", 2, [BATCH]), 1, {"known": np.array([1.0])})
    found = subject._measured(
        candidate, [cell], quick(["known"]), None, OnCpu(), bench_context(tmp_path, {5: bounds})  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.missing == [f"it was not taken apart to the end: {subject.in_words(error)}"]
    assert found.splits == {("full", 1): kept} and found.formulas is not None and found.shapes


def test_errors_are_told_in_one_line_without_their_mending() -> None:
    assert subject.in_words(InputError("no\nfile", where="m.json", fix="x")) == "InputError: m.json: no file"
    assert subject.in_words(KeyError("a")) == "KeyError: 'a'"


@pytest.mark.parametrize("place", ["measure_roofline", "roofline_section"])
def test_a_roofline_that_fails_as_a_whole_is_a_note(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(subject._Machine, "measure", lambda *_, **__: None)
    monkeypatch.setattr(session, place, fail)
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    run(quick(["teacher"], batch_sizes=[1]), found, context)
    report = read(context.folder)
    assert report.sections.roofline is None and report.candidates[0].quality
    assert "No roofline was measured: ZeroDivisionError: division by zero." in (report.sections.notes or [])


def test_a_machine_that_fails_after_a_candidate_leaves_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(machine: Any, shapes: Any = ()) -> None:
        asked.append(shapes)
        if len(asked) > 1:
            raise ChildFailed("crashed", "was ended by SIGKILL (out of memory?)")
        for what in ("bandwidth", "gemm"):
            machine.rates[what, "numpy", "", None] = [1.0]

    def split(*_: Any) -> subject.Split:
        return subject.Split("hooks", [10.0], [{"blocks": 10.0}], None)

    monkeypatch.setattr(subject, "_split", split)
    monkeypatch.setattr(subject._Machine, "measure", measure)
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    run(quick(["teacher", "student"], batch_sizes=[1]), found, context)
    section = read(context.folder).sections.roofline
    assert section is not None and [row.candidate for row in section.rows] == ["teacher", "student"]
    assert all(row.split_by == "hooks" for row in section.rows)
    assert len(asked) == 2, "before the first candidate and after it, and not once more"
    (caution,) = section.cautions
    assert "not measured to the end" in caution and "SIGKILL" in caution


def test_a_profile_that_overflowed_is_told_of_with_its_load() -> None:
    class Overflowed:
        def load(self, *_: Any, **__: Any) -> None:
            pass

        def ask(self, *_: Any, **__: Any) -> Mapping[str, Any]:
            return {"plain_ns": [1], "parts": None, "products": None, "overflowed": True}

    told = subject._split(
        Overflowed(), Load("full", 32, [BATCH]), "profile", 2, quick(["a"]), quick(["a"]).roofline, 9  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(told, str) and told != subject.NO_SPLIT
    assert "at batch 32 (full histories) is not whole" in told and "`roofline.calls`" in told


def test_a_candidate_that_crashes_while_it_is_taken_apart_keeps_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise ChildFailed("crashed", "was ended by SIGSEGV while it was taken apart")

    rates = [subject.Trial(what, "numpy", "", None, [1.0]) for what in ("bandwidth", "gemm")]
    monkeypatch.setattr(subject, "_split", crash)
    monkeypatch.setattr(subject._Machine, "measure", lambda *_: None)
    monkeypatch.setattr(subject._Machine, "trials", lambda _: rates)
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    run(quick(["teacher", "student"]), found, context)
    report = read(context.folder)
    for each in report.candidates:
        assert each.failed is None and each.latency and each.quality
    section = report.sections.roofline
    assert section is not None and list(section.missing) == ["teacher", "student"]
    assert "it was not taken apart to the end: it was ended by SIGSEGV" in section.missing["teacher"]


def test_a_machine_that_cannot_be_measured_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise ChildFailed("crashed", "was ended by SIGKILL (out of memory?)")

    monkeypatch.setattr(subject._Machine, "measure", crash)
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    run(quick(["teacher"]), found, context)
    report = read(context.folder)
    assert report.sections.roofline is None
    assert any(
        "No roofline was measured" in note and "SIGKILL" in note for note in report.sections.notes or []
    )
