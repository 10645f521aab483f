import pytest

from bench.report import wording
from bench.report.schema import Report
from bench.report.tables import Table, tables


def named(report: Report, start: str) -> Table:
    return next(table for table in tables(report) if table.title.startswith(start))


def row(table: Table, name: str) -> dict[str, str]:
    cells = next(cells for cells in table.rows if cells[0].text == name)
    return dict(zip(table.header, (cell.text for cell in cells), strict=True))


def test_every_row_fits_its_header(report: Report) -> None:
    for table in tables(report):
        assert {len(cells) for cells in table.rows} == {len(table.header)}, table.title


def test_what_was_not_measured_is_a_dash_and_never_0(report: Report) -> None:
    onnx = row(named(report, "Candidates"), "student-onnx:fp32")
    assert onnx["parameters"] == onnx["body"] == wording.ABSENT
    assert row(named(report, "Ranking quality"), "student-onnx:fp32")["MRR"] == wording.ABSENT
    assert row(named(report, "Latency, full"), "teacher")["p95 ms"] == wording.ABSENT
    assert row(named(report, "Quality kept"), "student-onnx:fp32")["MRR"] == wording.ABSENT


def test_candidates_are_described(report: Report) -> None:
    student = row(named(report, "Candidates"), "student")
    assert (student["made from"], student["parameters"], student["size"]) == ("teacher", "1,000", "4 kB")


def test_the_spread_over_seeds_stands_beside_the_mean(report: Report) -> None:
    assert row(named(report, "Ranking quality"), "teacher")["HR@1"] == "0.5000 ± 0.0000"
    document = report.as_json()
    document["candidates"][0]["quality_by_seed"][0]["hr@1"] = 0.4
    document["candidates"][0]["quality_by_seed"][1]["hr@1"] = 0.6
    assert (
        row(named(Report.model_validate(document), "Ranking quality"), "teacher")["HR@1"] == "0.5000 ± 0.1414"
    )


def test_slices_show_users_quality_and_the_share_kept(report: Report) -> None:
    table = named(report, "NDCG@5 by popularity")
    assert [cells[0].text for cells in table.rows] == ["tail", "cold"]
    tail = row(table, "tail")
    assert (tail["users"], tail["teacher"]) == ("2", "1.0000")
    assert tail["student"] == "0.3869 (39%)"  # rank 4 for both: 1 / log2(6)
    assert {cells[-3].tone for cells in table.rows} <= {"worse", ""}
    assert next(cells for cells in table.rows if cells[0].text == "tail")[3].tone == "worse"


def test_speed_and_size_are_against_the_reference(report: Report) -> None:
    smaller = row(named(report, "Size, against teacher"), "student")
    assert smaller == {"candidate": "student", "size": "0.25x", "parameters": "0.25x"}
    speed = next(each.speedup for each in report.comparisons if each.candidate == "student")
    for load in ("full", "real"):
        shown = row(named(report, f"Speed on {load} histories, against teacher"), "student")
        for each in (each for each in speed if each.load == load):
            assert shown[f"batch {each.batch}"] == wording.times(each.ratio, each.ci95)


def test_training_is_listed_for_those_that_were_trained(report: Report) -> None:
    table = named(report, "Training")
    assert [cells[0].text for cells in table.rows] == ["teacher", "student"]
    assert row(table, "teacher") == {"candidate": "teacher", "epochs": "3", "time": "6 s", "per epoch": "2 s"}


@pytest.mark.parametrize("part", ["comparisons", "sections"])
def test_tables_without_numbers_are_left_out(report: Report, part: str) -> None:
    document = report.as_json()
    document["comparisons"] = []
    document["sections"] = {}
    titles = [table.title for table in tables(Report.model_validate(document))]
    assert not any("against" in title for title in titles)
    assert "Ranking quality" in titles
