import pytest

from bench.report import wording
from bench.report.quality_tables import (
    change_table,
    compared_tables,
    coverage_table,
    quality_table,
    slice_tables,
)  # fmt: skip
from bench.report.schema import Report
from bench.report.table import Table
from tests.bench.report.full import full_report


def row(table: Table, name: str) -> dict[str, str]:
    cells = next(cells for cells in table.rows if cells[0].text == name)
    return dict(zip(table.header, (cell.text for cell in cells), strict=True))


def tones(table: Table, name: str) -> dict[str, str]:
    cells = next(cells for cells in table.rows if cells[0].text == name)
    return dict(zip(table.header, (cell.tone for cell in cells), strict=True))


@pytest.fixture(scope="module")
def full() -> Report:
    return full_report()


def test_the_spread_over_seeds_stands_beside_the_mean(full: Report) -> None:
    assert row(quality_table(full), "teacher")["NDCG@10"] == "0.0529 ± 0.0007"  # 0.985, 1.004, 1.011
    assert "over 3 seeds" in quality_table(full).note


def test_what_was_not_measured_is_a_dash_and_a_failed_candidate_has_no_row(full: Report) -> None:
    table = quality_table(full)
    assert row(table, "student-onnx:fp32")["MRR"] == wording.ABSENT
    assert "student-w4" not in [cells[0].text for cells in table.rows]


def test_what_is_kept_stands_with_interval_p_value_and_chance(full: Report) -> None:
    (table,) = compared_tables(full)
    student = row(table, "student")
    assert student["NDCG@10"] == "101.1% (99.6 to 102.6)"
    assert (student["p of NDCG@10"], student["A/A of NDCG@10"]) == ("0.210", "±2.1%")
    assert tones(table, "pruned")["NDCG@10"] == "worse" and tones(table, "student")["NDCG@10"] == ""
    assert "another" in table.note


def test_without_a_second_seed_there_is_no_column_of_chance(full: Report) -> None:
    document = full.as_json()
    for each in document["comparisons"]:
        for found in each["quality"].values():
            del found["aa_half_width"]
    (table,) = compared_tables(Report.model_validate(document))
    assert table.header[-1] == "p of NDCG@10" and "A/A" not in table.note


def test_slices_show_users_quality_and_the_share_kept(full: Report) -> None:
    history, popularity = slice_tables(full)
    assert [cells[0].text for cells in history.rows] == ["4-5", "6-9", "10-19", "20+"]
    tail = row(popularity, "tail")
    assert (tail["users"], tail["teacher"]) == ("6,900", "0.0132")
    assert tail["student-onnx:int8"] == "0.0071 (53%)"
    assert tones(popularity, "tail")["student-onnx:int8"] == "worse"
    assert tones(popularity, "cold")["student-onnx:int8"] == ""


def test_coverage_shows_the_share_of_every_shelf(full: Report) -> None:
    assert row(coverage_table(full), "student-onnx:int8") == {
        "candidate": "student-onnx:int8", "items@10": "6,720", "catalogue@10": "56.2%", "gini@10": "0.83",
        "head@10": "64.0%", "middle@10": "27.0%", "tail@10": "7.0%", "cold@10": "2.0%",
    }  # fmt: skip


def test_changes_of_place_are_counted_with_their_depth(full: Report) -> None:
    table = change_table(full)
    found = next(each for each in full.sections.rank_changes or [] if each.candidate == "student-onnx:int8")
    shown = row(table, "student-onnx:int8 against teacher")
    assert shown["worse"] == f"{found.worse:,} (43%)" and shown["depth"] == "20"
    assert row(table, "student against teacher")["depth"] == wording.ABSENT
