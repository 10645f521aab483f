from bench.report import wording
from bench.report.table import (
    Cell,
    Table,
    by_reference,
    colour_of,
    filled,
    key_name,
    row,
    without_empty_columns,
)
from tests.bench.report.full import full_report


def test_columns_without_a_number_go_but_not_the_names() -> None:
    table = Table(
        "t", "", ("name", "a", "b"), [row(wording.ABSENT, "1", wording.ABSENT), row("y", "2", wording.ABSENT)]
    )
    kept = without_empty_columns(table, wording.ABSENT)
    assert kept.header == ("name", "a") and kept.rows == [
        (Cell(wording.ABSENT), Cell("1")),
        (Cell("y"), Cell("2")),
    ]


def test_tables_without_rows_or_columns_are_left_out() -> None:
    whole = Table("t", "", ("a", "b"), [row("x", "1")])
    assert filled([whole, Table("t", "", ("a", "b"), []), Table("t", "", ("a",), [row("x")])]) == [whole]


def test_the_key_metric_is_ndcg_at_10_or_at_the_largest_cut_off() -> None:
    report = full_report()
    assert key_name(report) == "ndcg@10"
    other = report.model_copy(update={"evaluation": report.evaluation.model_copy(update={"ks": [1, 5]})})
    assert key_name(other) == "ndcg@5"


def test_comparisons_are_grouped_by_what_they_refer_to() -> None:
    report = full_report()
    ((against, group),) = by_reference(report)
    assert against == "teacher" and len(group) == len(report.comparisons)
    assert [colour_of(report, each.name) for each in report.candidates] == list(range(6))
