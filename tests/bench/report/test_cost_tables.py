import pytest

from bench.report import wording
from bench.report.cost_tables import candidate_table, cost_table, energy_table, smaller_tables, training_table
from bench.report.parts import Zeros
from bench.report.schema import Report
from tests.bench.report.full import full_report
from tests.bench.report.test_quality_tables import row
from tests.bench.report.variations import bare_report


@pytest.fixture(scope="module")
def full() -> Report:
    return full_report()


def test_candidates_are_described(full: Report) -> None:
    student = row(candidate_table(full), "student")
    assert (student["made from"], student["size"], student["peak memory"]) == ("pruned", "17.1 MB", "910 MB")
    failed = row(candidate_table(full), "student-w4")
    assert failed["size"] == failed["peak memory"] == wording.ABSENT


def test_zeros_have_a_column_only_where_weights_were_pruned(full: Report) -> None:
    assert "zeros" not in candidate_table(full).header
    zeros = Zeros(pattern="2:4", of_body_matrices=0.5)
    candidates = [
        each.model_copy(update={"zeros": zeros}) if each.name == "student" else each
        for each in full.candidates
    ]
    table = candidate_table(full.model_copy(update={"candidates": candidates}))
    assert row(table, "student")["zeros"] == "50% (2:4)"
    assert row(table, "teacher")["zeros"] == wording.ABSENT
    assert "Zeros: share of the weights in the matrices" in table.note


def test_memory_that_nobody_measured_has_no_column() -> None:
    table = candidate_table(bare_report())
    assert "peak memory" not in table.header and "Peak memory" not in table.note
    assert "peak memory" not in smaller_tables(bare_report())[0].header


def test_size_and_memory_are_against_the_reference(full: Report) -> None:
    (table,) = smaller_tables(full)
    assert row(table, "student-onnx:int8") == {
        "candidate": "student-onnx:int8", "size": "0.32x", "parameters": wording.ABSENT,
        "peak memory": "0.26x",
    }  # fmt: skip


def test_training_is_listed_for_those_that_were_trained(full: Report) -> None:
    (table,) = training_table(full)
    assert [cells[0].text for cells in table.rows] == ["teacher", "pruned", "student"]
    student = row(table, "student")
    assert student["per epoch"] == "56.4 s" and student["speed of an epoch"] == "1.79x"  # 100.8 s / 56.4 s
    assert row(table, "teacher")["speed of an epoch"] == wording.ABSENT


def test_an_epoch_of_a_lone_model_is_compared_with_nothing(full: Report) -> None:
    document = full.as_json()
    document["comparisons"] = []
    (table,) = training_table(Report.model_validate(document))
    assert table.header[-1] == "per epoch" and "reference" not in table.note


def test_energy_is_listed_for_those_that_were_metered(full: Report) -> None:
    table = energy_table(full)
    assert "pruned" not in {cells[0].text for cells in table.rows}
    teacher = row(table, "teacher")
    assert (teacher["counter"], teacher["watts"]) == ("RAPL", "61.3")
    assert energy_table(bare_report()).rows == []


def test_the_cost_card_names_price_and_origin_of_the_watts(full: Report) -> None:
    cost = full.sections.cost
    assert cost is not None
    table = cost_table(cost)
    assert "0.340 USD an hour" in table.note and "65.0 W" in table.note
    assert row(table, "pruned")["power"] == "assumed" and row(table, "teacher")["power"] == "measured"
    assert "users / USD" in table.header


def test_a_cost_card_without_price_has_no_column_for_it(full: Report) -> None:
    cost = full.sections.cost
    assert cost is not None
    rows = [each.model_copy(update={"users_per_currency_unit": None}) for each in cost.rows]
    table = cost_table(cost.model_copy(update={"price_per_hour": None, "watts": None, "rows": rows}))
    assert "users / USD" not in table.header and table.note == ""
