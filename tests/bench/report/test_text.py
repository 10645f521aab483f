from bench.report.schema import Report
from bench.report.text import headlines, summary


def test_the_summary_has_one_row_per_candidate(report: Report) -> None:
    table = summary(report)
    assert [row[0].text for row in table.rows] == [each.name for each in report.candidates]
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table.title == "tiny-recipe on tiny"


def test_a_headline_says_what_is_kept_and_won(report: Report) -> None:
    student, same, _ = headlines(report)
    assert student.startswith("student: keeps ") and "of the NDCG@5 of teacher" in student
    assert "at batch 1" in student and "its size 0.25x" in student
    assert "keeps 100.0% (95% interval 100.0% to 100.0%)" in same


def test_a_comparison_without_numbers_says_so(report: Report) -> None:
    document = report.as_json()
    document["comparisons"] = [{"candidate": "student", "against": "teacher", "quality": {}, "speedup": []}]
    assert headlines(Report.model_validate(document)) == ["student: nothing to compare."]
