"""The gate: open only where every bound that exists holds, and a clear error where there is no answer."""

from typing import Any

import pytest
from pydantic import ValidationError

from bench.demand import Demand
from bench.gate import Verdict, decide, refusals
from bench.report.schema import Report
from recommender.errors import InputError
from tests.bench.reports import candidate, comparison, faster, kept, report


def demand(**more: Any) -> Demand:
    given = {"candidate": "student", "against": "teacher", "min_quality": 0.97, "min_speedup": 5}
    return Demand.model_validate({**given, **more})


def only(found: Report, **more: Any) -> Verdict:
    """The verdict of a gate that asks one thing."""
    nothing = {"min_quality": None, "min_speedup": None}
    (verdict,) = decide(found, demand(**{**nothing, **more}))
    return verdict


def test_the_gate_is_open_where_every_lower_bound_holds() -> None:
    verdicts = decide(report(), demand(max_size_ratio=0.25))
    assert [(each.demand, each.bound, each.holds) for each in verdicts] == [
        ("min_quality", 0.98, True), ("min_speedup", 5.5, True), ("max_size_ratio", 0.25, True),
    ]  # fmt: skip
    assert refusals(verdicts) == []


@pytest.mark.parametrize(
    ("bound", "asked", "holds"), [(0.9699, 0.97, False), (0.97, 0.97, True), (0.98, 0.97, True)]
)
def test_quality_is_decided_by_the_lower_bound_and_not_by_the_ratio(
    bound: float, asked: float, holds: bool
) -> None:
    found = report(comparisons=[comparison(quality={"ndcg@10": kept(1.05, (bound, 1.2))})])
    verdict = only(found, min_quality=asked)
    assert (verdict.measured, verdict.bound, verdict.holds) == (1.05, bound, holds)


@pytest.mark.parametrize(("bound", "holds"), [(4.99, False), (5.0, True)])
def test_speed_is_decided_by_the_lower_bound_and_not_by_the_ratio(bound: float, holds: bool) -> None:
    found = report(comparisons=[comparison(speedup=[faster(9.0, (bound, 12.0))])])
    assert only(found, min_speedup=5).holds is holds


def test_speed_is_that_of_the_load_and_batch_size_that_are_asked_for() -> None:
    cells = [
        faster(9.0, (8.0, 10.0)),
        faster(2.0, (1.5, 2.5), batch=32),
        faster(3.0, (2.5, 3.5), load="full"),
    ]
    found = report(comparisons=[comparison(speedup=cells)])
    assert only(found, min_speedup=5).holds
    assert not only(found, min_speedup=5, batch=32).holds
    assert not only(found, min_speedup=5, load="full").holds


def test_every_thread_count_has_to_hold() -> None:
    cells = [faster(9.0, (8.0, 10.0)), faster(2.0, (1.5, 2.5), threads=4)]
    found = decide(report(comparisons=[comparison(speedup=cells)]), demand(min_quality=None, min_speedup=5))
    assert [each.holds for each in found] == [True, False]


@pytest.mark.parametrize("what", ["min_quality", "min_speedup"])
def test_a_bound_that_does_not_exist_does_not_hold(what: str) -> None:
    nothing = comparison(quality={"ndcg@10": kept(1.5, None)}, speedup=[faster(9.0, None)])
    verdict = only(report(comparisons=[nothing]), **{what: 0.1})
    assert (verdict.bound, verdict.holds) == (None, False)
    assert "too few" in verdict.note and "too few" in refusals([verdict])[0]
    assert "bound" not in verdict.as_document()


@pytest.mark.parametrize(("size", "holds"), [(500_000, True), (500_001, False)])
def test_size_and_memory_may_not_exceed_their_share(size: int, holds: bool) -> None:
    found = report(
        candidates=[
            candidate("teacher", peak_memory_bytes=1_000_000),
            candidate("student", size_bytes=size, peak_memory_bytes=size),
        ]
    )
    assert only(found, max_size_ratio=0.5).holds is holds
    assert only(found, max_memory_ratio=0.5).holds is holds


def test_a_refusal_says_what_was_measured_what_was_asked_and_the_bound() -> None:
    found = report(comparisons=[comparison(quality={"ndcg@10": kept(0.981, (0.953, 1.0))})])
    assert refusals([only(found, min_quality=0.97)]) == [
        "NDCG@10 kept: 98.1%, lower bound 95.3%, asked >= 97.0%"
    ]


def test_the_noise_of_seeds_and_of_processes_stands_beside_the_verdict() -> None:
    noisy = comparison(quality={"ndcg@10": kept(aa=0.031)}, speedup=[faster(floor=0.04)])
    found = report(comparisons=[noisy])
    assert "3.1%" in only(found, min_quality=0.9).note
    assert "4.0%" in only(found, min_speedup=2).note


@pytest.mark.parametrize(("floor", "holds"), [(0.05, True), (0.051, False)])
def test_a_loud_machine_may_shut_the_gate(floor: float, holds: bool) -> None:
    found = report(comparisons=[comparison(speedup=[faster(floor=floor, aa_ci95=(0.99, 1.01))])])
    assert only(found, max_aa_floor=0.05).holds is holds


def test_a_floor_without_an_interval_does_not_hold() -> None:
    verdict = only(report(comparisons=[comparison(speedup=[faster(floor=0.001)])]), max_aa_floor=0.05)
    assert (verdict.measured, verdict.bound, verdict.holds) == (0.001, None, False)
    assert "too few rounds" in verdict.note and "too few rounds" in refusals([verdict])[0]


def test_a_floor_that_is_small_by_luck_does_not_open_the_gate() -> None:
    lucky = faster(floor=0.001, aa_ci95=(0.93, 1.02))
    verdict = only(report(comparisons=[comparison(speedup=[lucky])]), max_aa_floor=0.05)
    assert (verdict.measured, verdict.holds) == (0.001, False)
    assert verdict.bound == pytest.approx(0.07)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_memory_of_a_gpu_is_not_in_the_report(name: str) -> None:
    found = [candidate(each, peak_memory_bytes=10) for each in ("teacher", "student") if each != name]
    found.append(candidate(name, device="cuda", peak_memory_bytes=10))
    said = error(report(candidates=found), max_memory_ratio=0.5)
    assert f"'{name}' ran on cuda: GPU memory is not in the report" in said


def test_sampled_negatives_are_named() -> None:
    assert "among 99 sampled" in only(report(sampled=99), min_quality=0.9).what


def error(found: Report, **more: Any) -> str:
    with pytest.raises(InputError) as raised:
        decide(found, demand(**more), where="runs/x/report.json")
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_an_unknown_candidate_is_told_with_the_nearest_name() -> None:
    assert "no candidate 'studnet' (did you mean 'student'?)" in error(report(), candidate="studnet")
    assert "no candidate 'base' (valid: student, teacher)" in error(report(), against="base")


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_candidate_that_failed_cannot_be_decided_on(name: str) -> None:
    named = {each: candidate(each) for each in ("teacher", "student")}
    named[name] = candidate(name, failed="hung for 60 s")
    said = error(report(candidates=list(named.values())))
    assert f"'{name}' could not be measured: hung for 60 s" in said


def test_a_comparison_that_was_not_made_is_told_with_those_that_were() -> None:
    said = error(report(), candidate="teacher", against="student")
    assert "does not compare 'teacher' with 'student'" in said
    assert "it has: student against teacher" in said and "against: student" in said
    assert "no comparison" in error(report(comparisons=[]))


def test_a_metric_that_was_not_measured_is_told_with_those_that_were() -> None:
    said = error(report(), metric="ndcg@20")
    assert "'ndcg@20' was not measured" in said and "choose one of: ndcg@10, hr@10, mrr" in said


def test_a_metric_that_only_one_of_them_has_was_not_measured_of_both() -> None:
    lists = candidate("student", quality={"hr@10": 0.5, "ndcg@10": 0.3})
    said = error(report(candidates=[candidate("teacher"), lists]), metric="mrr")
    assert "both" in said and "choose one of: ndcg@10, hr@10;" in said


def test_a_reference_without_a_hit_has_no_ratio() -> None:
    found = report(comparisons=[comparison(quality={})])
    assert "'ndcg@10' of 'teacher' is 0" in error(found, min_speedup=None)


def test_a_load_or_batch_size_that_was_not_timed_is_told_with_those_that_were() -> None:
    assert "load 'full', batch 1; there is: real: batch 1" in error(report(), load="full")
    assert "batch 8; there is: real: batch 1" in error(report(), batch=8)
    assert "there is: none" in error(report(comparisons=[comparison(speedup=[])]))


def test_a_floor_that_was_not_measured_is_told() -> None:
    found = report(comparisons=[comparison(speedup=[faster(floor=None)])])
    assert "no A/A floor was measured at real histories, batch 1" in error(found, max_aa_floor=0.05)


@pytest.mark.parametrize(
    ("asked", "said"), [("max_size_ratio", "size of 'teacher'"), ("max_memory_ratio", "'student' and")]
)
def test_a_size_or_memory_that_was_not_measured_is_told(asked: str, said: str) -> None:
    found = report(candidates=[candidate("teacher", size_bytes=None), candidate("student")])
    assert said in error(found, **{asked: 0.5})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"min_quality": None, "min_speedup": None}, "asks for nothing"),
        ({"candidate": "teacher"}, "cannot be held against itself"),
        ({"min_quality": 0}, "greater than 0"),
        ({"min_quality": float("nan")}, "greater than 0|finite"),
        ({"min_speedup": float("inf")}, "finite"),
        ({"min_speedup": True}, "must be a number"),
        ({"batch": 0}, "greater than or equal to 1"),
        ({"load": "fast"}, "'full' or 'real'"),
        ({"load": "open-loop"}, "'full' or 'real'"),  # has no speed-up
        ({"min_qualty": 0.9}, "Extra inputs"),
    ],
)
def test_a_wrong_demand_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        demand(**more)


def test_the_default_variant_of_an_artifact_has_two_names() -> None:
    """Which variant is the default is decided at the export, so a gate may name the one it means."""
    plain = report()
    students = [
        each.model_copy(update={"variant": "fast"}) if each.name == "student" else each
        for each in plain.candidates
    ]
    found = plain.model_copy(update={"candidates": students})
    named, spelt = decide(found, demand()), decide(found, demand(candidate="student:fast"))
    assert [each.holds for each in spelt] == [each.holds for each in named]
    with pytest.raises(InputError, match="no candidate 'student:fp32'"):
        decide(found, demand(candidate="student:fp32"))
