"""Candidates that crash, hang or raise: named in the report, and the others go on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.report.files import read
from bench.report.schema import CandidateReport, Report
from bench.stage import run
from recommender.errors import InputError, StageError
from recommender.stage import Bound
from tests.bench.conftest import DOWN, UP, bench_context, quick
from tests.bench.fakes import checkpoint

MISBEHAVING = "tests.bench.scorers:open_misbehaving"


def bounds(folder: Path, **misbehaving: Mapping[str, Any]) -> dict[str, Bound]:
    """teacher and student answer; the others do what their options say."""
    found = {
        "teacher": checkpoint(folder / "teacher", "teacher", UP),
        "student": checkpoint(folder / "student", "student", DOWN, of="teacher"),
    }
    for name, options in misbehaving.items():
        bound = checkpoint(folder / name, name, UP)
        ref = replace(bound.scorers[0], opener=MISBEHAVING, options=options)
        found[name] = replace(bound, scorers=(ref,))
    return found


def benched(folder: Path, names: list[str], found: Mapping[str, Bound], **more: Any) -> Report:
    context = bench_context(folder, {1: found})
    run(quick(compare=names, **{"rounds": 6, "batch_sizes": [2], "warmup": 1, **more}), found, context)
    return read(context.folder)


def named(report: Report, name: str) -> CandidateReport:
    return next(each for each in report.candidates if each.name == name)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One crashes when it is opened, one in the second load, one hangs, one raises."""
    folder = tmp_path_factory.mktemp("failures")
    found = bounds(
        folder,
        unopened={"what": "segv", "opens": False},
        crashing={"what": "segv", "after": 10},  # warm-up and 6 rounds, then in the second load
        hanging={"what": "hang", "after": 3},
        raising={"what": "raise", "after": 4},
    )
    return benched(folder, list(found), found, call_timeout_seconds=2)


def test_each_one_that_failed_is_named_with_what_happened(report: Report) -> None:
    assert named(report, "teacher").failed is None and named(report, "student").failed is None
    said = {each.name: each.failed or "" for each in report.candidates}
    assert "was ended by SIGSEGV while it was opened" in said["unopened"]
    assert "was ended by SIGSEGV in a call" in said["crashing"] and "last words" in said["crashing"]
    assert "gave no answer within 2 s in a call" in said["hanging"]
    assert "raised in a call: ValueError: the planted error" in said["raising"]
    notes = " ".join(report.sections.notes or [])
    assert all(f"{name} failed: " in notes for name in ("unopened", "crashing", "hanging", "raising"))


def test_the_others_have_all_their_numbers(report: Report) -> None:
    comparison = next(each for each in report.comparisons if each.candidate == "student")
    assert [each.load for each in comparison.speedup] == ["full", "real"]
    assert [each.samples for each in named(report, "student").latency] == [6, 6]
    assert named(report, "student").quality


def test_what_was_measured_before_a_failure_stands_and_nothing_else(report: Report) -> None:
    assert [each.load for each in named(report, "crashing").latency] == ["full"]
    assert not named(report, "hanging").latency and not named(report, "unopened").latency
    for name in ("unopened", "crashing", "hanging"):  # would have done it here too
        assert not named(report, name).quality and not named(report, name).slices
        assert named(report, name).peak_memory_bytes is None


def test_one_that_raises_while_it_is_judged_is_named_too(tmp_path: Path) -> None:
    found = bounds(tmp_path, raising={"what": "raise", "after": 99})
    at_once = {**found["raising"].scorers[0].options, "after": 0}
    two_seeds = {1: found, 2: {**found, "raising": _with(found["raising"], at_once)}}
    context = bench_context(tmp_path, two_seeds)
    run(quick(compare=["teacher", "raising"], rounds=6, batch_sizes=[2], loads=["real"]), found, context)
    raising = named(read(context.folder), "raising")
    assert raising.failed is not None and "raised while it was judged: ValueError" in raising.failed
    assert raising.latency and not raising.quality


def _with(bound: Bound, options: Mapping[str, Any]) -> Bound:
    return replace(bound, scorers=(replace(bound.scorers[0], options=options),))


def test_without_the_reference_the_others_stand_alone(tmp_path: Path) -> None:
    found = bounds(tmp_path, gone={"what": "segv", "opens": False})
    report = benched(tmp_path, ["gone", "student"], found)
    assert named(report, "student").latency and named(report, "student").quality
    assert [(each.speedup, each.quality) for each in report.comparisons] == [([], {})]
    assert any("the others stand alone" in note for note in report.sections.notes or [])


def test_when_all_fail_the_stage_does(tmp_path: Path) -> None:
    found = bounds(tmp_path, gone={"what": "segv", "opens": False}, broken={"what": "raise"})
    context = bench_context(tmp_path, {1: found})
    with pytest.raises(StageError, match=r"every candidate failed: gone was ended by SIGSEGV.*broken raised"):
        run(quick(compare=["gone", "broken"]), found, context)
    assert list(context.folder.iterdir()) == []


def test_bad_input_found_in_a_child_is_an_input_error_of_the_bench(tmp_path: Path) -> None:
    found = bounds(tmp_path, wrong={"what": "input", "opens": False})
    context = bench_context(tmp_path, {1: found})
    with pytest.raises(InputError, match="the planted input error"):
        run(quick(compare=["teacher", "wrong"]), found, context)
    assert list(context.folder.iterdir()) == []


def test_without_a_second_process_no_floor_is_claimed(tmp_path: Path) -> None:
    found = bounds(tmp_path)
    report = benched(tmp_path, ["teacher", "student"], found, aa=False)
    assert all(each.aa_floor is None for each in report.comparisons[0].speedup)
    assert any("No A/A floor was measured" in note for note in report.sections.notes or [])
