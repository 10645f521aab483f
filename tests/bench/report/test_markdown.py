from pathlib import Path

import pytest

from bench.report.markdown import markdown_table, plain
from bench.report.schema import Report
from bench.report.tables import Cell, Table
from tests.bench.fakes import HOSTILE


@pytest.fixture(scope="module")
def page(bench_folder: Path) -> str:
    return (bench_folder / "run" / "report.md").read_text()


def test_every_candidate_is_in_every_table_of_candidates(page: str, report: Report) -> None:
    for title in ("## Candidates", "## Ranking quality", "## Coverage"):
        table = page.split(title)[1].split("##")[0]
        assert all(f"| {each.name} |" in table for each in report.candidates)


def test_tables_are_whole(page: str) -> None:
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 8
    for lines in blocks:
        columns = {line.replace("\\|", "").count("|") for line in lines}
        assert len(columns) == 1


def test_hostile_titles_are_text(page: str) -> None:
    assert "<script" not in page
    assert "\u202e" not in page
    assert '&lt;script&gt;alert("1")&lt;/script&gt; \\| \\*\\*bold\\*\\* \\[x\\](javascript' in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("two\nlines\r\n| three", "two lines \\| three"),
        ("# 1", "\\# 1"),
        ("- x", "\\- x"),
        ("12. x", "12\\. x"),
        ("2026-11", "2026-11"),
        ("12 x-y (z) 98.5%", "12 x-y (z) 98.5%"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("see https://x.y and www.x.y", "see https:&#47;&#47;x.y and www&#46;x.y"),
        ("\u202eevil\u202c\x00\x1b[31m", "evil \\[31m"),
        ("Ünï – 漢字 👩\u200d🚀", "Ünï – 漢字 👩\u200d🚀"),  # noqa: RUF001
    ],
)
def test_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_clear_differences_are_marked_without_colour() -> None:
    table = Table(
        "t", "n", ("candidate", "x"), [(Cell("a"), Cell("90%", "worse")), (Cell("b"), Cell("110%", "better"))]
    )
    assert "| a | 90% ▼ |" in markdown_table(table) and "| b | 110% ▲ |" in markdown_table(table)


def test_the_hostile_fixture_is_hostile() -> None:
    assert "<script>" in HOSTILE and "|" in HOSTILE
