"""Each kind of sentence, where the numbers call for it and where they do not."""

from typing import Any

import pytest

from bench.findings import findings
from bench.report.parts import Finding
from bench.report.schema import Report
from tests.bench.reports import QUALITY, candidate, comparison, faster, kept, report


def said(found: Report, about: str) -> list[tuple[str, str]]:
    """(kind, text) of the findings whose text holds a phrase."""
    return [(each.kind, each.text) for each in findings(found) if about in each.text]


def one(found: Report, about: str) -> Finding:
    """The only finding whose text holds a phrase."""
    ((kind, text),) = said(found, about)
    return Finding.model_validate({"kind": kind, "text": text})


def quality(ratio: float, ci95: tuple[float, float] | None, aa: float | None = None) -> Report:
    return report(comparisons=[comparison(quality={"ndcg@10": kept(ratio, ci95, aa)}, speedup=[])])


def speed(*cells: Any) -> Report:
    return report(comparisons=[comparison(quality={}, speedup=list(cells))])


@pytest.mark.parametrize(
    ("ratio", "ci95", "kind", "words"),
    [
        (1.05, (1.01, 1.09), "holds", "student is better than teacher: 105.0%"),
        (0.99, (0.971, 1.02), "holds", "student is not worse than teacher, within 3%: it keeps 99.0%"),
        (0.99, (0.97, 1.02), "fails", "student is not shown to keep 97% of the NDCG@10 of teacher: 99.0%"),
        (0.90, (0.85, 0.96), "fails", "student is worse than teacher: it keeps 90.0%"),
        (0.99, None, "open", "Whether student keeps 97% of the NDCG@10 of teacher is open: 99.0%"),
    ],
)
def test_quality_is_non_inferior_or_not_by_its_lower_bound(
    ratio: float, ci95: tuple[float, float] | None, kind: str, words: str
) -> None:
    found = one(quality(ratio, ci95), "NDCG@10")
    assert found.kind == kind and found.text.startswith(words)
    assert ci95 is None or f"95% interval {ci95[0]:.1%} to {ci95[1]:.1%}" in found.text


def test_the_noise_of_seeds_stands_beside_the_ratio() -> None:
    assert "lie up to 1.5% apart." in one(quality(0.96, (0.95, 0.965), 0.015), "NDCG@10").text
    within = one(quality(0.99, (0.98, 1.0), 0.015), "NDCG@10").text
    assert "lie up to 1.5% apart, as much as this difference or more." in within
    assert "apart" not in one(quality(0.99, (0.98, 1.0)), "NDCG@10").text


def test_metrics_among_sampled_negatives_are_called_so() -> None:
    assert "NDCG@10 (among 99 sampled)" in findings(report(sampled=99))[0].text


@pytest.mark.parametrize(
    ("ci95", "floor", "kind", "words"),
    [
        ((5.5, 6.5), 0.02, "holds", "student is faster than teacher: 6.00x at batch 1 (real histories)."),
        ((0.5, 0.9), 0.02, "fails", "student is slower than teacher: 6.00x at batch 1"),
        ((0.9, 1.1), 0.0, "open", "is open, within the noise of timing: 6.00x (0.90 to 1.10)"),
        ((1.01, 1.03), 0.05, "open", "is open, within the noise of timing"),
        ((1.01, 1.03), None, "holds", "is faster"),
        ((0.96, 0.98), 0.05, "open", "is open, within the noise of timing"),
        (None, 0.0, "open", "6.00x at batch 1, without an interval"),
    ],
)
def test_speed_is_told_where_the_interval_excludes_1_by_more_than_the_floor(
    ci95: tuple[float, float] | None, floor: float | None, kind: str, words: str
) -> None:
    found = one(speed(faster(6.0, ci95, floor)), "at batch 1")
    assert found.kind == kind and words in found.text


def test_a_floor_that_is_small_by_luck_decides_nothing() -> None:
    lucky = faster(1.05, (1.03, 1.07), 0.0, aa_ci95=(0.96, 1.04))
    assert one(speed(lucky), "at batch 1").kind == "open"


def test_cells_that_say_the_same_share_a_sentence() -> None:
    found = speed(
        faster(2.0, (1.9, 2.1), batch=1, load="full"),
        faster(3.0, (2.9, 3.1), batch=1),
        faster(4.0, (3.9, 4.1), batch=32),
        faster(0.5, (0.4, 0.6), batch=256),
    )
    assert said(found, "faster") == [
        (
            "holds",
            "student is faster than teacher: 2.00x at batch 1 (full histories); 3.00x at batch 1, "
            "4.00x at batch 32 (real histories).",
        )
    ]
    assert one(found, "slower").kind == "fails"


def slice_ratio(ci95: tuple[float, float] | None, ratio: float = 0.8, **more: Any) -> dict[str, Any]:
    given = {"candidate": "student", "against": "teacher", "by": "popularity", "bin": "tail"}
    return {**given, "metric": "ndcg@10", "users": 1500, "ratio": kept(ratio, ci95), **more}


def test_a_ruined_tail_is_told_though_the_mean_holds() -> None:
    slices = [
        slice_ratio((0.7, 0.9)),
        slice_ratio((0.7, 0.96), bin="head"),
        slice_ratio((0.6, 0.94), by="history", bin="1-3"),
        slice_ratio(None, bin="cold"),
        slice_ratio((0.1, 0.2), candidate="other"),
    ]
    found = one(report(slice_ratios=slices), "some users lose")
    assert found.kind == "fails" and "student: though its mean holds, some users lose;" in found.text
    assert "80.0% (70.0 to 90.0) where a tail item is next (1,500 users)" in found.text
    assert "with 1-3 items of history" in found.text
    assert "head" not in found.text and "cold" not in found.text
    assert said(report(slice_ratios=slices[1:2]), "some users lose") == []


def test_where_the_mean_loses_too_only_slices_that_lose_more_are_told() -> None:
    slices = [slice_ratio((0.75, 0.85)), slice_ratio((0.1, 0.3), 0.2, bin="cold")]
    losing = [comparison(quality={"ndcg@10": kept(0.8, (0.78, 0.82))})]
    found = one(report(comparisons=losing, slice_ratios=slices), "some users lose")
    assert "some users lose more than others" in found.text
    assert "cold" in found.text and "tail" not in found.text


@pytest.mark.parametrize(("head", "told"), [(0.53, True), (0.51, False), (0.3, False)])
def test_leaning_on_popular_items_is_told_where_it_grows(head: float, told: bool) -> None:
    named = [
        candidate("teacher", coverage={"head@10": 0.5, "items@10": 4000}),
        candidate("student", coverage={"head@10": head, "items@10": 2500}),
    ]
    found = said(report(candidates=named), "leans more on popular items")
    assert bool(found) is told
    if told:
        assert found[0][0] == "fails"
        assert "53.0% instead of 50.0% of its top 10" in found[0][1] and "2,500 different" in found[0][1]


def test_an_artifact_is_held_beside_its_checkpoint() -> None:
    def with_onnx(ndcg: float) -> Report:
        onnx = candidate("onnx:int8", kind="artifact", of="student", quality={"hr@10": 0.5, "ndcg@10": ndcg})
        return report(candidates=[candidate("teacher"), candidate("student"), onnx])

    same, other = one(with_onnx(0.3002), "The artifact"), one(with_onnx(0.29), "The artifact")
    assert same.kind == "holds" and "ranks as student does" in same.text
    assert other.kind == "fails" and "NDCG@10 0.2900 against 0.3000" in other.text


def test_an_artifact_whose_checkpoint_was_not_measured_is_passed_over() -> None:
    alone = candidate("onnx", kind="artifact", of="gone")
    assert said(report(candidates=[alone], comparisons=[]), "The artifact") == []


@pytest.mark.parametrize(("ndcg", "told"), [(0.29, True), (0.3, True), (0.31, False)])
def test_training_that_did_not_help_is_told(ndcg: float, told: bool) -> None:
    trained = candidate("student", of="pruned", quality={**QUALITY, "ndcg@10": ndcg}, train={"seconds": 75.0})
    found = said(report(candidates=[candidate("pruned"), trained]), "is no better")
    assert bool(found) is told
    assert not told or (found[0][0] == "fails" and "for 1 min 15 s from pruned" in found[0][1])


def test_what_was_cut_without_training_has_nothing_to_explain() -> None:
    cut = candidate("pruned", of="teacher", quality={**QUALITY, "ndcg@10": 0.1})
    assert said(report(candidates=[candidate("teacher"), cut]), "is no better") == []


def test_candidates_that_failed_come_first_by_name() -> None:
    broken = candidate("broken", failed="it died with signal 11", quality={})
    found = findings(report(candidates=[candidate("teacher"), candidate("student"), broken]))
    assert found[0].kind == "fails"
    assert found[0].text == "broken could not be measured to the end: it died with signal 11."


def test_one_seed_leaves_the_noise_of_training_open() -> None:
    assert one(report(seeds=(1,)), "One seed").kind == "open"
    assert said(report(seeds=(1, 2)), "One seed") == []


def test_seeds_that_are_one_model_are_told_as_one_seed_is() -> None:
    def seeds(*hits: float) -> Report:
        by_seed = [{"seed": number, "hr@10": each} for number, each in enumerate(hits)]
        return report(candidates=[candidate("teacher", quality_by_seed=by_seed), candidate("student")])

    words = "how far another training of the same model would lie was not measured"
    assert one(seeds(0.5, 0.5), words).text.startswith("teacher is the same with every seed")
    assert said(seeds(0.5, 0.5, 0.4), words) == []


def test_a_missing_floor_and_a_loud_machine_are_told() -> None:
    assert one(speed(faster(floor=None)), "No A/A floor").kind == "open"
    loud = one(speed(faster(floor=0.08, batch=32), faster(floor=0.05)), "not quiet")
    assert loud.kind == "fails" and "8.0% at batch 32 (real histories)" in loud.text
    assert "5.0%" not in loud.text
    assert said(speed(faster(floor=0.05)), "not quiet") == []


def test_a_bench_of_one_candidate_has_nothing_to_say() -> None:
    assert findings(report(candidates=[candidate("teacher")], comparisons=[], seeds=(1,))) == []


def test_the_report_of_a_real_bench_has_findings(report: Report) -> None:
    texts = [each.text for each in findings(report)]
    assert any("student is worse than teacher" in text for text in texts)


ZEROS = {"pattern": "2:4", "of_body_matrices": 0.5, "of_body_parameters": 0.44, "of_everything": 0.06}


def test_zeros_bring_nothing_where_they_are_multiplied_like_any_number() -> None:
    sparse = report(candidates=[candidate("teacher"), candidate("student", zeros=ZEROS)])
    found = one(sparse, "zeros")
    assert found.kind == "fails"
    assert found.text.startswith(
        "student: 50% of the weights in the matrices of its blocks are zeros "
        "(44% of its body, 6% of everything), which save neither time nor memory here: torch stores"
    )
    assert "2:4 is for the sparse tensor cores of a GPU" in found.text


def test_zeros_that_are_not_there_or_are_made_use_of_are_not_told_of() -> None:
    assert said(report(), "zeros") == []
    for told in (ZEROS, {**ZEROS, "sparse_kernels": True}):
        served = candidate("student", zeros=told, runtime="tensorrt")
        assert said(report(candidates=[candidate("teacher"), served]), "zeros") == []
    plain = candidate("student", zeros={"pattern": "unstructured", "of_body_matrices": 0.5})
    text = one(report(candidates=[candidate("teacher"), plain]), "zeros").text
    assert "are zeros, which" in text and "2:4" not in text


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("2:4", "export it again with `tensorrt: {sparse: true}`."),
        ("unstructured", "no kernel has any use for zeros that do not lie 2:4."),
    ],
)
def test_an_engine_that_was_built_without_sparse_kernels_leaves_zeros_unused(pattern: str, told: str) -> None:
    zeros = {**ZEROS, "pattern": pattern, "sparse_kernels": False}
    engine = candidate("student", zeros=zeros, runtime="tensorrt")
    found = one(report(candidates=[candidate("teacher"), engine]), "zeros")
    assert found.kind == "fails" and "save neither time nor memory here: the engine was built" in found.text
    assert found.text.endswith(f"without kernels for them (sparse: false); {told}")
