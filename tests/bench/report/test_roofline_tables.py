import pytest

from bench.report import wording
from bench.report.html import to_html
from bench.report.markdown import to_markdown
from bench.report.roofline_figures import roofline_figures
from bench.report.roofline_parts import Roofline
from bench.report.roofline_tables import bound_table, machine_table, missing_lines, split_table
from bench.report.schema import Report
from tests.bench.report.full import full_report
from tests.bench.report.test_quality_tables import row
from tests.bench.report.variations import bare_report


@pytest.fixture(scope="module")
def full() -> Report:
    return full_report()


@pytest.fixture(scope="module")
def roofline(full: Report) -> Roofline:
    found = full.sections.roofline
    assert found is not None
    return found


def without(roofline: Roofline, **values: None) -> Roofline:
    return roofline.model_copy(
        update={"rows": [each.model_copy(update={**values}) for each in roofline.rows]}
    )


def test_each_call_stands_beside_what_the_machine_allows(roofline: Roofline) -> None:
    table = bound_table(roofline)
    assert len(table.rows) == len(roofline.rows)
    first = row(table, "teacher")
    assert (first["batch"], first["FLOPs"], first["bytes"]) == ("1", "9M", "4.01 MB")
    assert first["at the peak ms"] == "0.0508"  # 9e6 / 177e9
    assert first["from memory ms"] == "0.293"  # 4.01e6 / 13.7e9
    assert first["bound by"] == "memory" and first["bound reached"].endswith("%")


def test_a_call_of_unknown_work_is_not_in_that_table(roofline: Roofline) -> None:
    assert bound_table(without(roofline, flops=None)).rows == []


def test_the_split_has_a_column_for_each_part_that_anybody_spends_time_in(roofline: Roofline) -> None:
    table = split_table(roofline)
    teacher, artifact = row(table, "teacher"), row(table, "student-onnx:fp32")
    assert (teacher["blocks"], teacher["top-k"], teacher["copies"]) == ("70%", "4%", wording.ABSENT)
    assert (artifact["copies"], artifact["products"], artifact["of their peak"]) == ("10%", "40%", "90%")
    assert artifact["GFLOP/s of these"] == "159"  # 0.9 * 177
    assert teacher["products"] == wording.ABSENT


def test_columns_that_nobody_has_numbers_for_are_left_out(roofline: Roofline) -> None:
    only = roofline.model_copy(update={"rows": [r for r in roofline.rows if r.candidate == "teacher"]})
    assert not {"copies", "products", "of their peak"} & set(split_table(only).header)
    assert split_table(without(roofline, split_by=None)).rows == []


def test_the_machine_says_which_library_was_best(roofline: Roofline) -> None:
    table = machine_table(roofline)
    assert [[cell.text for cell in cells[:5]] for cells in table.rows] == [
        ["memory", "numpy", "matrix times vector", wording.ABSENT, "13.7 GB/s"],
        ["products", "onnxruntime", "MatMul", "1600 x 64 x 192", "177 GFLOP/s"],
        ["products", "torch", "mm", "2048 x 2048 x 2048", "159 GFLOP/s"],
    ]
    assert "With 1 thread" in table.note and "33.6 MB of last cache" in table.note


def test_an_unknown_cache_is_not_told_of(roofline: Roofline) -> None:
    machine = roofline.machine.model_copy(update={"cache_bytes": None})
    assert "cache" not in machine_table(roofline.model_copy(update={"machine": machine})).note


def test_what_is_not_known_is_told_with_its_reason(roofline: Roofline) -> None:
    assert missing_lines(roofline) == ["student-onnx:int8: its manifest has no cost formulas."]


def test_the_figure_has_the_roof_and_a_line_for_each_known_candidate(full: Report) -> None:
    (figure,) = roofline_figures(full).figures
    assert "Roofline, full histories, 1 thread" in figure.caption
    for name in ("machine", "teacher", "student-onnx:fp32"):
        assert name in figure.svg
    assert "student-onnx:int8" not in figure.svg


def test_no_figure_without_known_work(full: Report, roofline: Roofline) -> None:
    sections = full.sections.model_copy(update={"roofline": without(roofline, flops=None, intensity=None)})
    assert roofline_figures(full.model_copy(update={"sections": sections})).figures == []
    assert roofline_figures(bare_report()).figures == []


def test_both_pages_show_the_section_and_leave_it_out_where_it_was_not_measured(full: Report) -> None:
    for page in (to_markdown(full), str(to_html(full))):
        assert "Where the time goes" in page and "At batch 1 the blocks hold it up." in page
        assert "its manifest has no cost formulas" in page and "This machine was not quiet." in page
        assert "Against the machine" in page and "Split of the time" in page
    for page in (to_markdown(bare_report()), str(to_html(bare_report()))):
        assert "Where the time goes" not in page


def test_an_absent_number_has_no_key(full: Report) -> None:
    document = full.as_json()["sections"]["roofline"]
    teacher = document["rows"][0]
    assert "products" not in teacher and "without_peak" not in teacher
    assert "bound_ms" not in teacher["parts"][-1] and "shape" not in document["machine"]["trials"][0]
