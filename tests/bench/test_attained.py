"""Bounds, shares and cautions by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.attained import bounds, cautions, faster_half, machine_of, roofline_section, shares_of
from bench.latency import Timed
from bench.loads import Load
from bench.report.roofline_parts import Machine, RooflineRow
from bench.roofline import Evidence, Measured, Split, Trial, buffer_bytes, mean_work, own_shapes
from recommender.cost import CostFormulas, Work
from recommender.scoring import HistoryArrays

BANDWIDTH, GEMM = 1e9, 1e11
FORMULAS: dict[str, Any] = {
    "precision": "fp32", "table_precision": "fp32", "rows": 101, "max_length": 10,
    "shapes": [[8, 24], [24, 8]],
    "parts": {
        "embedding": {"bytes": {"item": 40}},
        "blocks": {"products": {"position": 1e6, "pair": 1e3}, "bytes": {"call": 1e6}},
        "head": {},
        "scoring": {"products": {"user_row": 100}, "bytes": {"row": 200}},
        "top_k": {"elementwise": {"user_row": 1}, "bytes": {"answer": 12}},
    },
}  # fmt: skip


def formulas(**more: Any) -> CostFormulas:
    return CostFormulas.model_validate({**FORMULAS, **more})


def load(*lengths: Sequence[int], name: Any = "full") -> Load:
    """One batch per sequence of lengths."""

    def batch(own: Sequence[int]) -> HistoryArrays:
        items = np.zeros((len(own), 12), np.int64)
        for row, length in enumerate(own):
            items[row, 12 - length :] = 1
        return HistoryArrays(items)

    return Load(name, len(lengths[0]), [batch(own) for own in lengths])


def timed(cell: Load, **seconds: Sequence[float]) -> Timed:
    return Timed(cell, 2, {name: np.array(values) for name, values in seconds.items()})


def split(
    parts: Sequence[Mapping[str, float]], plain: Sequence[float] = (), how: Any = "hooks",
    products: Sequence[tuple[float, float]] | None = None,
) -> Split:  # fmt: skip
    return Split(how, plain, parts, products)


TRIALS = [
    Trial("bandwidth", "numpy", "sum", None, [BANDWIDTH, 0.9 * BANDWIDTH, 0.95 * BANDWIDTH]),
    Trial("bandwidth", "torch", "sum", None, [0.1 * BANDWIDTH]),
    Trial("gemm", "torch", "mm", (99, 99, 99), [GEMM, GEMM, 0.9 * GEMM]),
    Trial("gemm", "onnxruntime", "MatMul", (10, 8, 24), [0.5 * GEMM]),
    Trial("gemm", "numpy", "matmul", (10, 24, 8), [0.25 * GEMM]),
]


def evidence(**candidates: Measured) -> Evidence:
    return Evidence(TRIALS, candidates, buffer_bytes=4096, cache_bytes=None)


def machine() -> Machine:
    return machine_of(evidence(), threads=2)


def the_row(measured: Measured, cell: Load, seconds: Sequence[float] = (0.01,)) -> RooflineRow:
    cells = [timed(cell, student=seconds)]
    (row,) = roofline_section(evidence(student=measured), cells, k=5, rows=101).rows
    return row


def test_the_best_trial_of_a_kind_is_the_peak() -> None:
    found = machine()
    assert (found.bandwidth, found.gemm, found.threads) == (BANDWIDTH, GEMM, 2)
    assert found.trials[0].median == 0.95 * BANDWIDTH and found.trials[0].lowest == 0.9 * BANDWIDTH


def test_bounds_by_hand() -> None:
    """1 GFLOP at 100 GFLOP/s are 10 ms, 2 MB at 1 GB/s are 2 ms."""
    works = {"blocks": Work(products=9e8, bytes=1.5e6), "scoring": Work(products=1e8, bytes=5e5)}
    assert bounds(works, [], machine(), 20.0) == {
        "flops": 1e9, "bytes": 2e6, "intensity": 500.0, "compute_ms": pytest.approx(10),
        "bandwidth_ms": pytest.approx(2), "bound_ms": pytest.approx(10), "bound_by": "compute",
        "share_of_bound": pytest.approx(0.5),
    }  # fmt: skip


def test_parts_in_another_precision_are_not_in_the_compute_bound() -> None:
    works = {"blocks": Work(products=9e8, bytes=1.5e6), "scoring": Work(products=1e8, bytes=5e5)}
    found = bounds(works, ["blocks"], machine(), 20.0)
    assert found["compute_ms"] == pytest.approx(1) and found["bound_by"] == "memory"
    assert found["flops"] == 1e9


def test_unknown_work_has_no_bounds() -> None:
    assert bounds({}, [], machine(), 1.0) == {}


def test_a_row_has_the_mean_work_of_its_batches() -> None:
    cell = load([2, 4], [10, 12])  # the last one is cut to 10 items
    works = mean_work(formulas(), cell, 5, 101)
    assert works["blocks"].products == pytest.approx((6e6 + 20e3 + 20e6 + 200e3) / 2)
    assert works["blocks"].attention == pytest.approx((20e3 + 200e3) / 2)
    assert works["embedding"].bytes == pytest.approx(40 * (6 + 20) / 2)
    row = the_row(Measured(formulas()), cell, [0.02, 0.01, 0.03])
    assert row.time_ms == pytest.approx(20) and row.flops == pytest.approx(
        sum(work.flops for work in works.values())
    )
    assert row.split_by is None and all(each.share is None for each in row.parts)
    assert [each.part for each in row.parts] == ["embedding", "blocks", "head", "scoring", "top_k"]


def test_a_part_is_bound_by_its_own_work() -> None:
    row = the_row(Measured(formulas()), load([10]))
    blocks, scoring = (next(p for p in row.parts if p.part == name) for name in ("blocks", "scoring"))
    assert blocks.bound_ms == pytest.approx(1.0)  # 1 MB at 1 GB/s; 10.1 MFLOP take 0.1 ms
    assert scoring.bound_ms == pytest.approx(101 * 200 / 1e9 * 1e3)


@pytest.mark.parametrize(
    ("more", "without"),
    [({"precision": "int8"}, ["blocks"]), ({"table_precision": "int8"}, ["scoring"]), ({}, None)],
)
def test_a_row_says_which_parts_the_peak_does_not_hold_for(more: Any, without: Any) -> None:
    assert the_row(Measured(formulas(**more)), load([10])).without_peak == without


def test_projections_around_a_body_of_another_precision_are_not_in_the_compute_bound() -> None:
    """All products with weights are made in int8 there; what is left of a call is its scan."""
    parts = FORMULAS["parts"] | {
        "embedding": {"products": {"item": 1e6}, "bytes": {"item": 40}}, "head": {"products": {"user": 1e6}},
    }  # fmt: skip
    row = the_row(Measured(formulas(precision="int8", parts=parts)), load([10]))
    assert row.without_peak == ["embedding", "blocks", "head"]
    assert row.compute_ms == pytest.approx(1e3 * 101 * (100 + 1) / GEMM)
    own = {part.part: part.bound_ms for part in row.parts}
    assert own["head"] == 0.0 and own["embedding"] == pytest.approx(1e3 * 400 / BANDWIDTH)


def test_hooked_calls_share_out_their_own_time() -> None:
    """The faster half: calls of 10 and 20 ns, not the disturbed ones."""
    calls = [
        {"blocks": 6, "other": 4}, {"blocks": 900, "other": 1}, {"blocks": 14, "other": 6},
        {"blocks": 1, "other": 900},
    ]  # fmt: skip
    found = shares_of(split(calls, plain=[10, 10]))
    assert found == {"blocks": pytest.approx(20 / 30), "other": pytest.approx(10 / 30)}


def test_a_profile_leaves_the_rest_of_a_plain_call_to_the_host() -> None:
    calls = [{"blocks": 60, "scoring": 20}, {"blocks": 60, "scoring": 20}]
    found = shares_of(split(calls, plain=[100, 500, 100, 900], how="profile"))
    assert found == {
        "blocks": pytest.approx(0.6), "scoring": pytest.approx(0.2), "other": pytest.approx(0.2),
    }  # fmt: skip


def test_a_profile_that_took_longer_than_plain_calls_leaves_nothing() -> None:
    found = shares_of(split([{"blocks": 150, "scoring": 50}], plain=[100], how="profile"))
    assert found == {"blocks": 0.75, "scoring": 0.25, "other": 0.0}


@pytest.mark.parametrize(
    ("values", "chosen"), [([3.0], [0]), ([3.0, 1.0], [1]), ([4.0, 2.0, 9.0, 1.0, 5.0], [3, 1])]
)
def test_the_faster_half_is_one_call_at_least(values: list[float], chosen: list[int]) -> None:
    assert faster_half(values) == chosen


def test_products_are_held_against_the_peak_of_their_own_shapes() -> None:
    calls = [{"blocks": 80}, {"blocks": 9000}]
    own = split(calls, plain=[100, 100], how="profile", products=[(40, 1800), (8000, 1)])
    measured = Measured(formulas(), [(10, 8, 24), (10, 24, 8)], {("full", 1): own})
    row = the_row(measured, load([10]))
    assert row.products is not None
    assert row.products.share == pytest.approx(0.4)
    assert row.products.flops_per_second == pytest.approx(45e9)
    assert row.products.share_of_peak == pytest.approx(0.9)  # of 50 GFLOP/s, not of the square's 100
    measured.formulas = formulas(precision="int8")
    row = the_row(measured, load([10]))
    assert row.products is not None and row.products.share_of_peak is None


def test_a_model_without_products_in_blocks_has_none() -> None:
    own = split([{"scoring": 80}], plain=[100], how="profile", products=[(0, 0)])
    assert the_row(Measured(formulas(), [], {("full", 1): own}), load([10])).products is None


def test_a_candidate_without_formulas_has_its_split_and_says_what_is_missing() -> None:
    own = split([{"blocks": 80, "other": 20}])
    measured = Measured(None, [], {("full", 1): own}, ["no formulas", "and more"])
    cells = [timed(load([10]), student=[0.01])]
    found = roofline_section(evidence(student=measured), cells, k=5, rows=101)
    (row,) = found.rows
    assert row.flops is None and row.bound_ms is None and row.share_of_bound is None
    assert [(each.part, each.time_ms) for each in row.parts] == [
        ("blocks", pytest.approx(8)), ("other", pytest.approx(2)),
    ]  # fmt: skip
    assert found.missing == {"student": "no formulas; and more"}
    assert found.reasons[0].text.startswith("At batch 1 (full histories) a call takes 10.0 ms; 80% is in")


def test_a_candidate_of_which_nothing_is_known_has_no_row() -> None:
    found = roofline_section(
        evidence(student=Measured(missing=["nothing"])), [timed(load([10]), student=[0.01])], k=5, rows=101
    )
    assert found.rows == [] and found.reasons == [] and found.missing == {"student": "nothing"}


def test_a_candidate_that_no_bounds_can_be_told_of_costs_the_others_nothing() -> None:
    """Formulas by hand may read nothing: then there are no FLOPs per byte."""
    nothing = formulas(parts={"scoring": {"products": {"user_row": 100}}})
    cells = [timed(load([10]), odd=[0.01], student=[0.01])]
    found = roofline_section(
        evidence(odd=Measured(nothing), student=Measured(formulas())), cells, k=5, rows=101
    )
    assert [row.candidate for row in found.rows] == [each.candidate for each in found.reasons] == ["student"]
    assert (
        list(found.missing) == ["odd"]
        and "no bounds could be told: ZeroDivisionError" in found.missing["odd"]
    )


def test_a_machine_that_was_not_measured_to_the_end_is_told_of() -> None:
    cut = replace(evidence(student=Measured(formulas())), machine_failed="was ended by SIGKILL")
    found = roofline_section(cut, [timed(load([10]), student=[0.01])], k=5, rows=101)
    assert len(found.rows) == 1
    (caution,) = found.cautions
    assert "the process that measures it was ended by SIGKILL." in caution


@pytest.mark.parametrize(("median", "said"), [(0.8, 0), (0.79, 1)])
def test_a_busy_machine_is_told_of(median: float, said: int) -> None:
    trials = [each.model_copy(update={"median": each.best}) for each in machine().trials]
    trials[0] = trials[0].model_copy(update={"median": median * trials[0].best})
    found = list(cautions(machine().model_copy(update={"trials": trials})))
    assert len(found) == said
    assert all("memory bandwidth came to 79% of the best or less" in each for each in found)


def test_own_shapes_have_the_positions_of_the_largest_call() -> None:
    assert own_shapes(formulas(), [load([2, 4]), load([10, 10])]) == [(20, 8, 24), (20, 24, 8)]
    assert own_shapes(formulas(extra_positions=3), [load([2, 4])])[0][0] == 12
    assert own_shapes(formulas(), [load([10] * 500)])[0][0] == 2048
    assert own_shapes(formulas(shapes=[]), [load([2])]) == []


@pytest.mark.parametrize(
    ("wanted", "cache", "found"),
    [
        (None, None, 256 << 20), (None, 32 << 20, 256 << 20), (None, 100 << 20, 400 << 20),
        (None, 1 << 30, 2 << 30), (0.5, 1 << 30, 1 << 19),
    ],
)  # fmt: skip
def test_the_buffer_is_well_above_the_last_cache(wanted: float | None, cache: int | None, found: int) -> None:
    assert buffer_bytes(wanted, cache) == found
