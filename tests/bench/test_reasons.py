"""What is said of a call, at the edges of every rule."""

from typing import Any

import pytest

from bench.reasons import FAR, NEAR, SMALL, TOLD, fixed_ms, reason, sentence, verdict
from bench.report.roofline_parts import CallPart, Products, RooflineRow


def a_row(time_ms: float = 1.0, bound_ms: float | None = 0.2, **more: Any) -> RooflineRow:
    known: dict[str, Any] = {}
    if bound_ms is not None:
        known = {"bound_ms": bound_ms, "bound_by": "memory", "share_of_bound": bound_ms / time_ms}
    given = {
        "candidate": "student", "load": "full", "batch": 1, "threads": 1, "time_ms": time_ms, "parts": [],
        **known, **more,
    }  # fmt: skip
    return RooflineRow.model_validate(given)


def part(name: str, share: float, time_ms: float = 0.0, bound_ms: float | None = None) -> CallPart:
    return CallPart.model_validate({"part": name, "share": share, "time_ms": time_ms, "bound_ms": bound_ms})


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0001, "beyond"), (1.0, "near"), (NEAR, "near"), (NEAR - 1e-9, "partly"), (FAR, "partly"),
        (FAR - 1e-9, "far"), (0.0, "far"),
    ],
)  # fmt: skip
def test_verdicts_change_at_their_edges(share: float, said: str) -> None:
    assert verdict(share) == said


@pytest.mark.parametrize(
    ("bound_ms", "by", "words"),
    [
        (
            0.2,
            "memory",
            "is far from both bounds, as its operators are slower than arithmetic and memory are (20%",
        ),
        (0.5, "compute", "reaches 50% of the compute bound"),
        (0.9, "compute", "runs at the compute bound (90%), and only fewer FLOPs or a lower precision"),
        (0.9, "memory", "runs at the memory bound (90%), and only fewer bytes would help"),
        (1.5, "memory", "is faster than memory, so its weights stay in caches"),
        (1.5, "compute", "is faster than the peak that was measured, on a machine that was busy"),
    ],
)
def test_each_verdict_has_its_words_and_its_numbers(bound_ms: float, by: str, words: str) -> None:
    said = sentence(a_row(1.0, bound_ms, bound_by=by))
    assert said.startswith(f"At batch 1 (full histories) it {words}")
    assert f"compute in {bound_ms:#.3g} ms, the call takes 1.00 ms." in said


@pytest.mark.parametrize(("fixed_ms", "overhead"), [(None, False), (0.399, False), (0.4, True), (0.8, True)])
def test_overhead_is_what_a_small_batch_costs_as_well(fixed_ms: float | None, overhead: bool) -> None:
    """0.8 ms lie above the bound: half of them have to be there at every batch."""
    said = sentence(a_row(1.0, 0.2), fixed_ms=fixed_ms)
    assert (
        "it is bound by the overhead of calls and operators (20% of the memory bound)" in said
    ) == overhead
    assert ("it is far from both bounds" in said) != overhead


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (a_row(1.0, 0.2, batch=SMALL), 0.8), (a_row(1.0, 0.2, batch=SMALL + 1), None),
        (a_row(1.0, None), None), (a_row(1.0, 1.3), 0.0),
    ],
)  # fmt: skip
def test_only_a_small_batch_of_known_bound_tells_what_every_call_costs(
    row: RooflineRow, found: float | None
) -> None:
    assert fixed_ms([row, a_row(9.0, 0.2, batch=512)]) == (None if found is None else pytest.approx(found))


def test_a_scan_of_a_large_catalogue_is_no_overhead_of_the_call() -> None:
    slow = [part("blocks", 0.2, 8.0, 1.0), part("scoring", 0.7, 28.0, 2.0), part("top_k", 0.1, 4.0, 0.0)]
    row = a_row(40.0, 4.0, parts=slow)
    assert fixed_ms([row]) == pytest.approx(7.0)
    assert "far from both bounds" in reason([row]) and "most is lost in scoring" in reason([row])
    quick = [part("blocks", 0.9, 36.0, 1.0), part("scoring", 0.1, 4.0, 2.0)]
    assert "overhead of calls" in reason([a_row(40.0, 4.0, parts=quick)])


def test_a_large_batch_is_not_called_overhead_where_its_operators_are_slow() -> None:
    said = reason([a_row(1.0, 0.1), a_row(100.0, 10.0, batch=32)])
    assert "At batch 1 (full histories) it is bound by the overhead" in said
    assert "At batch 32 (full histories) it is far from both bounds" in said


def test_the_largest_parts_are_told_first_and_small_ones_not_at_all() -> None:
    parts = [part("scoring", 0.2), part("blocks", 0.55), part("head", TOLD - 1e-9), part("top_k", TOLD)]
    said = sentence(a_row(parts=parts))
    assert "55% is in the blocks, 20% is in scoring, 5% is in top-k" in said
    assert "the head" not in said


def test_what_is_lost_is_told_where_a_call_is_far_from_its_bound() -> None:
    parts = [part("blocks", 0.5, 0.5, 0.4), part("scoring", 0.3, 0.3, 0.05), part("other", 0.2, 0.2)]
    lost = "most is lost in scoring (0.250 ms more than its bound)"
    assert lost in sentence(a_row(1.0, 0.45, parts=parts))
    assert lost in sentence(a_row(1.0, 0.1, parts=parts))
    assert "lost" not in sentence(a_row(1.0, NEAR, parts=parts))
    assert "lost" not in sentence(a_row(1.0, 1.2, parts=parts))


def test_the_host_counts_whole_as_lost() -> None:
    parts = [part("blocks", 0.5, 0.5, 0.4), part("other", 0.5, 0.5)]
    assert "most is lost in the host (batches, copies, calls) (0.500 ms" in sentence(a_row(parts=parts))


def test_nothing_is_lost_where_every_part_is_at_its_bound() -> None:
    assert "lost" not in sentence(a_row(parts=[part("blocks", 1.0, 0.3, 0.3)]))


def test_an_unknown_bound_leaves_time_and_split() -> None:
    said = sentence(a_row(1.37, None, parts=[part("blocks", 0.9, 1.2)]))
    assert said == "At batch 1 (full histories) a call takes 1.37 ms; 90% is in the blocks."


def test_products_are_told_with_the_peak_of_their_own_shapes() -> None:
    products = Products(share=0.57, flops_per_second=165e9, share_of_peak=0.93)
    said = sentence(a_row(products=products))
    assert "run at 165 GFLOP/s, 93% of the GEMM peak with these shapes, and take 57% of the time" in said
    without = sentence(a_row(products=products.model_copy(update={"share_of_peak": None})))
    assert "run at 165 GFLOP/s, and take 57%" in without


def test_what_does_not_compute_in_fp32_is_said_to_be_outside_of_the_bound() -> None:
    def said(*parts: str) -> str:
        return sentence(a_row(without_peak=list(parts)))

    assert "; the products of scoring are not in fp32 and not in this bound" in said("scoring")
    assert "the products of the blocks and scoring are not" in said("blocks", "scoring")
    assert "of the embedding, the blocks and the head are not" in said("embedding", "blocks", "head")


def test_a_candidate_is_told_of_at_its_smallest_and_largest_batch() -> None:
    rows = [a_row(batch=batch) for batch in (32, 1, 256)] + [a_row(batch=512, load="real")]
    said = reason(rows)
    assert "At batch 1 (full" in said and "At batch 256 (full" in said
    assert "batch 32" not in said and "real" not in said
    assert reason([a_row(load="real")]).count("At batch") == 1
    assert reason([]) == ""
