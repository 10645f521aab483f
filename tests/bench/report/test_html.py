import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report.html import cards, plots, to_html
from bench.report.schema import Report
from tests.bench.fakes import HOSTILE

VOID = {"meta", "br", "path", "circle"}
ATTACK = '"><img src=x onerror=alert(1)>{{7*7}}'


class Page(HTMLParser):
    """Every tag, attribute and text of a page; complains about tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def html(bench_folder: Path) -> str:
    return (bench_folder / "run" / "report.html").read_text()


def test_every_candidate_and_every_table_is_there(html: str, report: Report) -> None:
    texts = Page(html).texts
    for each in report.candidates:
        assert texts.count(each.name) >= 5
    for title in (
        "Candidates",
        "Ranking quality",
        "Coverage",
        "Latency, real histories",
        "Quality kept, against teacher",
    ):
        assert title in texts


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in page.attributes}
    assert not re.search(r"@import|url\(|https?:", html)
    assert "default-src 'none'" in html


def test_hostile_titles_are_text(html: str) -> None:
    assert HOSTILE in Page(html).texts
    assert "<script" not in html.lower()


def test_hostile_names_are_text_everywhere(report: Report) -> None:
    document = report.as_json()
    for name in ("recipe", "command", "variant"):
        document[name] = ATTACK
    document["dataset"]["name"] = document["environment"]["cpu"] = ATTACK
    renamed = document["candidates"][1]["name"]
    document["candidates"][1]["of"] = ATTACK
    text = Report.model_validate(document).model_dump_json().replace(f'"{renamed}"', json_text(ATTACK))
    html = to_html(Report.model_validate_json(text))
    page = Page(html)
    assert "img" not in page.tags and "onerror" not in {name for name, _ in page.attributes}
    assert ATTACK in page.texts and "49" not in page.texts


def json_text(text: str) -> str:
    import json

    return json.dumps(text)


def test_one_plot_for_each_batch_size_of_the_real_load(report: Report) -> None:
    captions = [caption for caption, _ in plots(report)]
    assert captions == ["Batch 1, real histories, 1 threads", "Batch 4, real histories, 1 threads"]


def test_cards_say_what_each_candidate_keeps_and_wins(report: Report) -> None:
    student = cards(report)[0]
    assert (student.candidate, student.against) == ("student", "teacher")
    shown = {what: figure for figure, what, _ in student.figures}
    assert shown["size"] == "0.25x"
    assert [what.split(", ")[:2] for what in shown if "speed" in what] == [
        ["speed", "batch 1"], ["speed", "batch 4"],
    ]  # fmt: skip
    assert any(what.startswith("of NDCG@5") for what in shown)


def test_a_report_with_little_in_it_still_makes_a_page(report: Report) -> None:
    document = report.as_json()
    document["sections"], document["comparisons"], document["candidates"] = {}, [], document["candidates"][:1]
    for name in ("latency", "slices", "quality_by_seed"):
        document["candidates"][0][name] = []
    document["environment"] = {}
    document["candidates"][0]["coverage"] = {}
    page = Page(to_html(Report.model_validate(document)))
    assert "teacher" in page.texts and "svg" not in page.tags


def test_sampled_metrics_are_labelled_wherever_they_are_shown(report: Report) -> None:
    document = report.as_json()
    document["evaluation"]["sampled_negatives"] = 99
    html = to_html(Report.model_validate(document))
    visible = re.sub(r"<[^>]*>", " ", html)
    for place in re.finditer(r"(?:NDCG|HR)@\d+|MRR", visible):
        after = visible[place.end() : place.end() + 25]
        assert after.startswith(" (among 99 sampled)"), visible[place.start() - 40 : place.end() + 40]
