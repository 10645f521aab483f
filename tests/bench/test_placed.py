"""Which part of a call an operator belongs to, told from graphs by hand."""

from collections.abc import Sequence

import pytest

from bench.trace_onnx import Ran, apart, placed
from tests.export.fixtures import N_ITEMS

ROWS = N_ITEMS + 1


def ran(op: str, columns: int = 16, ns: int = 10, inner: int = 16) -> Ran:
    return Ran(op, ns, ((4, inner),), ((4, columns),))


def parts_of(run: Sequence[Ran]) -> list[tuple[str, str]]:
    return [(each.op, part) for each, part in zip(run, placed([run], ROWS)[0], strict=True)]


def test_a_body_with_its_norms_in_front() -> None:
    assert parts_of(
        [
            ran("Gather"), ran("MatMul"), ran("RMSNormalization"), ran("MatMul"), ran("Reshape"),
            ran("Attention"), ran("Add"), ran("SkipSimplifiedLayerNormalization"), ran("Gemm", 8),
            ran("Transpose"), ran("Gemm", ROWS, inner=8), ran("ScatterElements", ROWS), ran("TopK", 5),
        ]
    ) == [
        ("Gather", "embedding"), ("MatMul", "embedding"), ("RMSNormalization", "blocks"),
        ("MatMul", "blocks"), ("Reshape", "copies"), ("Attention", "blocks"), ("Add", "blocks"),
        ("SkipSimplifiedLayerNormalization", "head"), ("Gemm", "head"), ("Transpose", "copies"),
        ("Gemm", "scoring"), ("ScatterElements", "top_k"), ("TopK", "top_k"),
    ]  # fmt: skip


def test_a_body_with_its_norms_behind_begins_with_its_first_product() -> None:
    found = parts_of(
        [
            ran("Gather"), ran("Mul"), ran("MatMul"), ran("Attention"), ran("LayerNormalization"),
            ran("LayerNormalization"), ran("MatMul", ROWS), ran("TopK", 5),
        ]
    )  # fmt: skip
    assert [part for _, part in found] == [
        "embedding", "embedding", "blocks", "blocks", "blocks", "head", "scoring", "top_k",
    ]  # fmt: skip


def test_a_graph_without_a_body_has_neither_blocks_nor_head() -> None:
    found = parts_of([ran("Gather"), ran("CumSum"), ran("Gemm", ROWS), ran("TopK", 5)])
    assert [part for _, part in found] == ["embedding", "embedding", "scoring", "top_k"]


def test_a_scan_in_pieces_and_its_re_rank_are_told_apart() -> None:
    """No product covers the whole table: wide ones score, the narrow one that follows re-ranks."""
    found = parts_of(
        [
            ran("RMSNormalization"), ran("MatMul"), ran("RMSNormalization"), ran("DynamicQuantizeLinear"),
            ran("MatMulInteger", 32), ran("ReduceMax", 4), ran("MatMulInteger", 20), ran("TopK", 8),
            ran("MatMul", 8), ran("TopK", 5),
        ]
    )  # fmt: skip
    assert [part for _, part in found] == [
        "blocks", "blocks", "head", "head", "scoring", "top_k", "scoring", "top_k", "top_k", "top_k",
    ]  # fmt: skip


def test_a_wide_product_within_the_blocks_does_not_score() -> None:
    found = parts_of(
        [
            ran("RMSNormalization"),
            ran("MatMul", ROWS),
            ran("RMSNormalization"),
            ran("Gemm", ROWS),
            ran("TopK", 5),
        ]
    )
    assert [part for _, part in found] == ["blocks", "blocks", "head", "scoring", "top_k"]


def test_a_graph_that_only_makes_user_vectors_scores_nothing() -> None:
    found = parts_of([ran("Gather"), ran("RMSNormalization"), ran("MatMul"), ran("RMSNormalization")])
    assert [part for _, part in found] == ["embedding", "blocks", "blocks", "head"]


BODY = [ran("Gather"), ran("RMSNormalization"), ran("MatMul"), ran("RMSNormalization"), ran("Gemm", 16)]
"""A body of its own, whose output projection is wide beside a table of 41 rows."""


@pytest.mark.parametrize("columns", [ROWS, ROWS - 1, 128])
def test_a_body_of_its_own_does_not_score_where_another_run_scans_the_table(columns: int) -> None:
    head = [ran("Gemm", columns), ran("ScatterElements", columns), ran("TopK", 5)]
    *bodies, last = placed([BODY, BODY, head], ROWS)
    assert bodies == [["embedding", "blocks", "blocks", "head", "head"]] * 2
    assert last == ["scoring", "top_k", "top_k"]


def test_a_body_whose_vectors_are_searched_elsewhere_scores_nothing() -> None:
    """An index outside of onnxruntime: no run picks the best, however wide the projection is."""
    for columns in (16, ROWS, ROWS - 1):
        (found,) = placed([[*BODY[:-1], ran("Gemm", columns)]], ROWS)
        assert found == ["embedding", "blocks", "blocks", "head", "head"]


@pytest.mark.parametrize("columns", [ROWS, ROWS - 1])
def test_a_projection_as_wide_as_the_table_does_not_score(columns: int) -> None:
    """As many items as an item vector has values: the scan is the last such product, over the table."""
    (found,) = placed([[*BODY[:-1], ran("Gemm", columns), ran("Gemm", ROWS), ran("TopK", 5)]], ROWS)
    assert found[-3:] == ["head", "scoring", "top_k"]
    body, head = placed([[*BODY[:-1], ran("Gemm", columns)], [ran("Gemm", 128), ran("TopK", 5)]], ROWS)
    assert body[-1] == "head" and head == ["scoring", "top_k"]


def test_what_a_head_of_its_own_does_before_its_scan_is_scoring() -> None:
    """It makes integers of vectors that the body has made: nothing is looked up there."""
    head = [ran("Abs"), ran("Cast"), ran("MatMulIntegerToFloat", 128), ran("TopK", 5)]
    assert placed([BODY, head], ROWS)[1] == ["scoring", "copies", "scoring", "top_k"]
    counting = [ran("Gather"), ran("CumSum")]  # a body without blocks
    assert placed([counting, head], ROWS)[0] == ["embedding", "embedding"]
    whole = [ran("Gather"), ran("Gemm", ROWS), ran("TopK", 5)]
    assert placed([whole, whole], ROWS) == [["embedding", "scoring", "top_k"]] * 2


def test_flops_of_a_product_come_from_its_shapes() -> None:
    assert Ran("MatMul", 1, ((2, 3, 5),), ((2, 3, 7),)).flops == 2 * 2 * 3 * 7 * 5
    assert Ran("MatMul", 1, ((),), ()).flops == 0 == Ran("MatMul", 1, (), ((3,),)).flops


def test_runs_of_one_call_are_added() -> None:
    run = [ran("RMSNormalization", ns=3), ran("MatMul", ns=5), ran("LayerNormalization", ns=7)]
    found = apart([run, run], ROWS)
    assert found.parts == {"blocks": 16, "head": 14}
    assert (found.product_ns, found.product_flops) == (10, 2 * 2 * 4 * 16 * 16)
