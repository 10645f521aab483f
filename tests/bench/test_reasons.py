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


def taken_apart(
    time_ms: float, blocks_ms: float, products_ms: float | None, bound_ms: float = 20.0, **more: Any
) -> RooflineRow:
    """A call whose time is in the blocks, but for the `more` of other parts."""
    batch, products = more.pop("batch", 1), None
    if products_ms is not None:
        products = Products(share=products_ms / time_ms, flops_per_second=1e10, share_of_peak=0.2)
    times = {"blocks": blocks_ms, **more}
    parts = [
        part(name, ms / time_ms, ms, bound_ms if name == "blocks" else 0.0) for name, ms in times.items()
    ]
    return a_row(time_ms, bound_ms, batch=batch, parts=parts, products=products)


def test_a_call_that_is_all_slow_products_is_not_bound_by_overhead() -> None:
    """97% in products at 20% of their peak: the words must not say otherwise."""
    said = reason([taken_apart(100.0, 98.0, 97.0, other=1.0, embedding=1.0)])
    assert "far from both bounds, as its operators are slower" in said and "overhead" not in said
    assert "run at 10.0 GFLOP/s, 20% of their GEMM peak" in said


@pytest.mark.parametrize(
    ("row", "fixed", "overhead"),
    [  # 100 ms lie above the bound
        (taken_apart(128.0, 114.0, 64.0, 28.0, embedding=14.0), 50.0, True),
        (taken_apart(128.0, 113.9, 64.0, 28.0, embedding=14.1), 49.9, False),
        (taken_apart(128.0, 64.0, 64.0, 28.0, other=50.0), 50.0, True),
        (taken_apart(128.0, 64.0, 64.0, 28.0, other=49.9), 49.9, False),
        (taken_apart(128.0, 78.0, 64.0, 28.0, copies=18.0, other=18.0), 50.0, True),
        (taken_apart(128.0, 60.0, 64.0, 28.0, head=68.0), 0.0, False),
        (taken_apart(128.0, 32.0, 32.0, 28.0, scoring=80.0, top_k=16.0), 0.0, False),
    ],
)
def test_overhead_of_a_small_batch_is_host_copies_and_blocks_outside_of_products(
    row: RooflineRow, fixed: float, overhead: bool
) -> None:
    assert fixed_ms([row]) == pytest.approx(fixed)
    assert ("bound by the overhead of calls and operators" in reason([row])) == overhead
    assert ("far from both bounds" in reason([row])) != overhead


@pytest.mark.parametrize(("batch", "told"), [(SMALL, True), (SMALL + 1, False)])
def test_only_a_small_batch_of_known_bound_tells_what_every_call_costs(batch: int, told: bool) -> None:
    row = taken_apart(100.0, 55.0, 55.0, other=45.0, batch=batch)
    assert (fixed_ms([row]) is not None) == told
    assert fixed_ms([a_row(1.0, None)]) is None


def test_blocks_of_a_checkpoint_cost_every_call_what_does_not_grow_with_the_batch() -> None:
    """Nobody sees its products: 70 ms at a batch of 1 and 101 ms at 32 are 69 ms whatever the batch."""
    small = taken_apart(100.0, 70.0, None, other=5.0)
    large = taken_apart(150.0, 101.0, None, other=5.0, batch=32)
    assert fixed_ms([small, large]) == pytest.approx(5.0 + 69.0 - 20.0)
    assert "At batch 1 (full histories) it is bound by the overhead" in reason([small, large])
    proportional = taken_apart(3000.0, 2240.0, None, other=5.0, batch=32)
    assert fixed_ms([small, proportional]) == fixed_ms([small]) == pytest.approx(5.0)
    assert "overhead" not in reason([small, proportional]) + reason([small])
    faster = taken_apart(50.0, 35.0, None, other=5.0, batch=32)
    assert fixed_ms([small, faster]) == pytest.approx(5.0 + 70.0 - 20.0)
    assert fixed_ms([small, a_row(50.0, 20.0, batch=32)]) == pytest.approx(5.0), "not taken apart there"


def test_a_call_that_was_not_taken_apart_tells_by_its_whole_time() -> None:
    assert fixed_ms([a_row(1.0, 0.2)]) is None
    assert fixed_ms([a_row(1.0, 0.2), a_row(4.1, 0.2, batch=32)]) == pytest.approx(0.9 - 0.2)
    assert fixed_ms([a_row(1.0, 1.3), a_row(1.0, 1.3, batch=32)]) == 0.0


def test_a_large_batch_is_not_called_overhead_where_its_operators_are_slow() -> None:
    said = reason([taken_apart(100.0, 55.0, 55.0, other=45.0), a_row(1000.0, 100.0, batch=32)])
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
    assert (
        "run at 165 GFLOP/s, 93% of their GEMM peak at the rows of the largest call, and take 57% of the time"
        in said
    )
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
