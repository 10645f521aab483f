import pytest

from bench.report import wording
from bench.report.schema import Report
from bench.report.speed_tables import device_tables, latency_tables, saturation_table, speed_tables
from bench.report.table import Table
from tests.bench.report.full import full_report
from tests.bench.report.test_quality_tables import row, tones
from tests.bench.reports import candidate, report


@pytest.fixture(scope="module")
def full() -> Report:
    return full_report()


def named(tables: list[Table], start: str) -> Table:
    return next(table for table in tables if table.title.startswith(start))


def test_the_floor_of_chance_stands_beside_each_speed_up(full: Report) -> None:
    table = named(speed_tables(full), "Speed on real histories, against teacher")
    assert table.header == ("candidate", "batch 1", "A/A", "batch 32", "A/A", "batch 256", "A/A")
    cells = next(cells for cells in table.rows if cells[0].text == "student")
    assert [cell.text for cell in cells[1:5]] == [
        "1.90x (1.82 to 1.99)",
        "±3.4%",
        "1.90x (1.82 to 1.99)",
        "±1.2%",
    ]
    assert cells[1].tone == "better" and "two processes" in table.note


def test_a_speed_up_within_the_floor_is_not_marked(full: Report) -> None:
    document = full.as_json()
    for each in document["comparisons"]:
        for speed in each["speedup"]:
            speed |= {"ratio": 1.02, "ci95": [1.01, 1.03], "aa_floor": 0.034}
    table = named(speed_tables(Report.model_validate(document)), "Speed on real")
    assert set(tones(table, "student").values()) == {""}


def test_a_floor_that_may_be_luck_is_shown_as_wide_as_its_interval(full: Report) -> None:
    document = full.as_json()
    for each in document["comparisons"]:
        for speed in each["speedup"]:
            speed |= {"aa_floor": 0.004, "aa_ci95": [0.9, 1.056]}
    table = named(speed_tables(Report.model_validate(document)), "Speed on real")
    assert row(table, "student")["A/A"] == "±10.0%"


def test_without_a_floor_there_is_no_column_for_it(full: Report) -> None:
    document = full.as_json()
    for each in document["comparisons"]:
        for speed in each["speedup"]:
            del speed["aa_floor"]
    table = named(speed_tables(Report.model_validate(document)), "Speed on real")
    assert table.header == ("candidate", "batch 1", "batch 32", "batch 256") and "A/A" not in table.note


def test_percentiles_without_enough_samples_are_dashes(full: Report) -> None:
    table = named(latency_tables(full), "Latency, real")
    rows = [dict(zip(table.header, [cell.text for cell in cells], strict=True)) for cells in table.rows]
    assert {shown["p99 ms"] for shown in rows if shown["batch"] == "256"} == {wording.ABSENT}
    assert wording.ABSENT not in {shown["p99 ms"] for shown in rows if shown["batch"] == "1"}
    assert [shown["batch"] for shown in rows] == sorted((shown["batch"] for shown in rows), key=int)
    assert "on device ms" not in table.header


def test_time_on_a_device_is_shown_where_it_was_measured(full: Report) -> None:
    document = full.as_json()
    document["candidates"][0]["latency"][0]["device_ms"] = 4.5
    table = named(latency_tables(Report.model_validate(document)), "Latency, full")
    assert row(table, "teacher")["on device ms"] == "4.50"


def test_load_at_a_rate_says_what_was_offered_answered_and_left(full: Report) -> None:
    table = named(latency_tables(full), "Latency under load")
    rows = [dict(zip(table.header, [cell.text for cell in cells], strict=True)) for cells in table.rows]
    teacher = [shown for shown in rows if shown["candidate"] == "teacher"]
    assert [shown["kept up"] for shown in teacher] == [wording.ABSENT, "yes", "yes", "yes", "no"]
    assert teacher[-1]["unanswered"] == "31" and teacher[0]["p99 ms"] == wording.ABSENT
    assert float(teacher[-1]["offered / s"].replace(",", "")) > float(
        teacher[-1]["answered / s"].replace(",", "")
    )


def test_saturation_names_the_limit_that_it_holds_for(full: Report) -> None:
    assert row(saturation_table(full), "teacher") == {
        "candidate": "teacher", "batch": "32", "users / s": "842", "p99 limit": "60.0 ms",
    }  # fmt: skip
    document = full.as_json()
    del document["sections"]["saturation"]
    assert saturation_table(Report.model_validate(document)).rows == []


def test_a_call_on_a_gpu_is_shown_as_kernels_copies_and_waiting() -> None:
    cell = {"load": "full", "length": 4.0, "batch": 1, "threads": 1, "p50_ms": 2.0, "users_per_second": 500.0}
    work = {
        "kernels_ms": 1.2, "to_device_ms": 0.3, "to_host_ms": 0.1, "to_device_bytes": 2048.0,
        "to_host_bytes": 100.0,
    }  # fmt: skip
    there = candidate("there", latency=[{**cell, "samples": 9, "device_ms": 1.9, **work}])
    here = candidate("here", latency=[{**cell, "samples": 9}])
    (table,) = device_tables(report(candidates=[here, there], comparisons=[]))
    shown = {name: cell.text for name, cell in zip(table.header, table.rows[0], strict=True)}
    assert len(table.rows) == 1 and shown["candidate"] == "there"
    assert shown["GPU busy"] == "80%" and shown["between events ms"] == "1.90"
    assert shown["copies in ms"] == "0.300" and shown["bytes in"] == wording.size(2048)
    (nothing,) = device_tables(report(candidates=[here], comparisons=[]))
    assert nothing.rows == []
