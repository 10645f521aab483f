from bench.report.headline import cards, headline_table
from bench.report.schema import Report
from tests.bench.report.full import full_report
from tests.bench.report.test_quality_tables import row
from tests.bench.report.variations import bare_report


def test_every_candidate_has_a_card_in_order() -> None:
    found = cards(full_report())
    assert [card.candidate for card in found] == [each.name for each in full_report().candidates]
    assert [card.role for card in found] == ["reference", *["against teacher"] * 4, ""]


def test_a_card_says_what_is_kept_and_won_with_intervals_and_chance() -> None:
    student = cards(full_report())[2]
    shown = {figure.what: (figure.value, figure.beside) for figure in student.figures}
    assert shown == {
        "of NDCG@10 kept": ("101.1%", ("99.6 to 102.6%", "A/A ±2.1%")),
        "speed, batch 1": ("1.90x", ("1.82 to 1.99", "A/A ±3.4%")),
        "speed, batch 256": ("1.90x", ("1.82 to 1.99", "A/A ±1.2%")),
        "size": ("17.1 MB", ("0.60x of the reference",)),
        "peak memory": ("910 MB", ("1.00x of the reference",)),
    }
    assert student.verdict is not None and student.verdict.kind == "holds"


def test_a_reference_shows_its_own_values() -> None:
    shown = {figure.what: figure.value for figure in cards(full_report())[0].figures}
    assert shown == {
        "NDCG@10": "0.0529", "median, batch 1": "8.08 ms", "size": "28.4 MB", "peak memory": "910 MB",
    }  # fmt: skip


def test_a_candidate_that_crashed_says_why_instead_of_a_verdict() -> None:
    failed = cards(full_report())[-1]
    assert "signal 9" in failed.failed and failed.verdict is None and failed.figures == []


def test_a_crash_after_a_comparison_outweighs_its_verdict() -> None:
    document = full_report().as_json()
    document["candidates"][2]["failed"] = "it hung"
    card = cards(Report.model_validate(document))[2]
    assert card.failed == "it hung" and card.verdict is None and card.figures


def test_the_table_holds_the_same_as_the_cards() -> None:
    table = headline_table(full_report())
    student = row(table, "student")
    assert student["verdict"] == "not worse (within 3%); faster"
    assert student["of NDCG@10 kept"] == "101.1% (99.6 to 102.6%, A/A ±2.1%)"
    assert row(table, "student-w4")["verdict"].startswith("failed: its process ended")
    assert {len(cells) for cells in table.rows} == {len(table.header)}


def test_what_was_not_measured_is_not_mentioned() -> None:
    text = str(headline_table(bare_report()))
    assert "A/A" in text and "peak memory" not in text
