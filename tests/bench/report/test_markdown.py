import pytest

from bench.report.markdown import markdown_table, plain, to_markdown
from bench.report.table import Cell, Table
from tests.bench.report.full import full_report
from tests.bench.report.variations import ATTACKS, bare_report, hostile_report


@pytest.fixture(scope="module")
def page() -> str:
    return to_markdown(full_report())


@pytest.fixture(scope="module")
def hostile() -> str:
    return to_markdown(hostile_report())


def part(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_candidate_is_in_every_table_of_candidates(page: str) -> None:
    measured = [each for each in full_report().candidates if each.failed is None]
    for title in ("In short", "Candidates", "Ranking quality", "Coverage and popularity bias"):
        assert all(f"| {each.name} |" in part(page, title) for each in measured), title


def test_every_part_has_its_numbers(page: str) -> None:
    assert "101.1% (99.6 to 102.6, A/A ±2.1%)" not in page  # the interval has its per cent sign
    assert "101.1% (99.6 to 102.6%, A/A ±2.1%)" in part(page, "In short")
    assert "- ✗ student-w4 crashed" in part(page, "Findings")
    assert "signal 9" in part(page, "Candidates that failed")
    assert "1.90x (1.82 to 1.99) ▲ | ±3.4%" in part(page, "Speed")
    assert "| teacher | 32 | 842 | 60.0 ms |" in part(page, "Load at a rate")
    assert "RAPL" in part(page, "Energy and cost") and "### Assumptions" in part(page, "Energy and cost")
    assert "| 3 | 3-5 | 0.0860 |" in part(page, "Depth profile of teacher")
    assert "    - student (with teacher)" in part(page, "Where this comes from")
    assert "    recpress run slmrec" in part(page, "Where this comes from")
    assert "Quality against speed" not in page, "figures are left to the HTML page, and so are their headings"


def test_a_bare_report_has_no_heading_without_a_body() -> None:
    page = to_markdown(bare_report())
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## In short", "## Candidates", "## Ranking quality", "## Speed", "## Where this comes from",
    ]  # fmt: skip
    assert "\n\n\n" not in page


def test_tables_are_whole(page: str, hostile: str) -> None:
    for text in (page, hostile):
        blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
        assert len(blocks) >= 15
        for lines in blocks:
            assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_hostile_names_titles_and_sentences_are_text(hostile: str) -> None:
    indented = [line for line in hostile.splitlines() if line.startswith("    recpress") or "owned" in line]
    assert indented
    code = next(line for line in hostile.splitlines() if line.startswith("    <script>"))
    rest = hostile.replace(code, "")
    assert "<script" not in rest and "<img" not in rest and "<svg" not in rest
    assert "\u202e" not in hostile and "\x1b" not in hostile and "\u2028" not in hostile
    assert "a \\| b \\`c\\` \\*d\\* \\[e\\](javascript:alert(1)) {{7\\*7}} &amp;amp;" in rest
    assert ATTACKS[-1] in rest, "Markdown has the whole name"


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
