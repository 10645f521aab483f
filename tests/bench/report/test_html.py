import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bench.report.html import to_html, unbroken
from bench.report.schema import Report
from bench.report.visible import visible
from tests.bench.report.full import full_report
from tests.bench.report.variations import ATTACKS, bare_report, hostile_report

VOID = {"meta", "br"}
HARMLESS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "footer", "nav", "section", "article",
    "div", "p", "h1", "h2", "h3", "h4", "small", "strong", "bdi", "span", "ul", "ol", "li", "a", "dl", "dt",
    "dd", "figure", "figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td", "pre",
    "svg", "desc", "g", "path", "text", "circle", "rect",
}  # fmt: skip
"""Every element that a page may have."""


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
def html() -> str:
    return to_html(full_report())


@pytest.fixture(scope="module")
def hostile() -> str:
    return to_html(hostile_report())


def test_every_candidate_and_every_part_is_there(html: str) -> None:
    texts = Page(html).texts
    for each in full_report().candidates:
        assert texts.count(each.name) >= (5 if each.failed is None else 2)
    for heading in (
        "Candidates that failed", "Holds", "Fails", "Open", "Quality against speed",
        "Quality kept, speed won",
        "Quality kept, against teacher", "Slices", "Coverage and popularity bias", "Who wins and who loses",
        "Speed on real histories, against teacher", "Load at a rate", "Saturation", "Energy", "Cost card",
        "Assumptions", "Training", "Depth profile of teacher", "Recommendations to a few test users",
        "How to read this", "What was made from what", "Digests", "Command", "Environment",
    ):  # fmt: skip
        assert heading in texts, heading


def test_the_page_needs_nothing_from_outside(html: str, hostile: str) -> None:
    for text in (html, hostile):
        page = Page(text)
        assert set(page.tags) <= HARMLESS
        names = {name for name, _ in page.attributes}
        assert not {"src", "srcset", "action", "style-src", "formaction", "data", "xlink:href"} & names
        assert not [name for name in names if name.startswith("on")]
        assert all(str(value).startswith("#") for name, value in page.attributes if name == "href")
        assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(|https?:", html)


def test_links_of_the_contents_lead_to_sections(html: str) -> None:
    attributes = Page(html).attributes
    anchors = [str(value) for name, value in attributes if name == "id"]
    assert len(anchors) == len(set(anchors))
    assert {str(value)[1:] for name, value in attributes if name == "href"} <= set(anchors)


def test_hostile_names_titles_and_sentences_are_text(hostile: str) -> None:
    page = Page(hostile)
    for attack in ATTACKS:
        assert visible(attack).strip() in page.texts
    assert "<script" not in hostile.lower() and "49" not in page.texts


def test_nothing_in_a_page_changes_the_order_in_which_it_is_read(hostile: str) -> None:
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00\x1b\u2028\ufffe]", hostile)
    assert "\u05e2\u05d1\u05e8\u05d9\u05ea" in hostile, "letters that are written from right to left stay"


def test_a_very_long_name_is_cut_where_it_is_repeated_and_whole_on_demand(hostile: str) -> None:
    long = ATTACKS[-1]
    page = Page(hostile)
    assert ("title", long) in page.attributes
    assert long not in [text for text in page.texts if text.startswith("very-long-name") and "…" in text]
    assert any(text.startswith("very-long-name") and "…" in text and len(text) == 80 for text in page.texts)


@pytest.mark.parametrize("make", [full_report, hostile_report])
def test_every_plot_is_well_formed_and_named(make: object) -> None:
    assert callable(make)
    found = re.findall(r"<svg.*?</svg>", to_html(make()), flags=re.DOTALL)
    assert len(found) >= 30
    for svg in found:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img" and root.findtext("title") and root.findtext("desc")


def test_headings_go_down_one_step_at_a_time(html: str) -> None:
    levels = [int(tag[1]) for tag in Page(html).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_are_named_and_their_heads_say_what_they_head(html: str) -> None:
    page = Page(html)
    assert page.tags.count("caption") == page.tags.count("table") >= 20
    assert [name for name, _ in page.attributes].count("scope") == page.tags.count("th")
    assert ("lang", "en") in page.attributes
    assert ("content", "width=device-width, initial-scale=1") in page.attributes


def test_cards_give_way_to_a_table_where_there_are_many() -> None:
    document = full_report().as_json()
    first = document["candidates"][2]
    for number in range(6):
        document["candidates"].append(first | {"name": f"student-{number}"})
    page = Page(to_html(Report.model_validate(document)))
    assert "article" not in page.tags[: page.tags.index("nav")] and "In short" in page.texts


def test_a_report_with_little_in_it_still_makes_a_page() -> None:
    document = bare_report().as_json()
    document["sections"], document["comparisons"], document["candidates"] = {}, [], document["candidates"][:1]
    for name in ("latency", "slices", "quality_by_seed"):
        document["candidates"][0][name] = []
    document["environment"], document["command"] = {}, ""
    page = Page(to_html(Report.model_validate(document)))
    assert "teacher" in page.texts and "svg" not in page.tags
    assert page.tags.count("h2") == 1 + 2, "in short, candidates, quality"


def test_sampled_metrics_are_labelled_wherever_they_are_shown() -> None:
    document = full_report().as_json()
    document["evaluation"]["sampled_negatives"] = 99
    document["sections"]["findings"] = []
    html = to_html(Report.model_validate(document))
    body = re.sub(r"<desc>.*?</desc>|<title>.*?</title>", " ", html, flags=re.DOTALL)
    visible_text = re.sub(r"<[^>]*>", " ", body)
    places = list(re.finditer(r"(?:NDCG|HR)@\d+|MRR", visible_text))
    assert len(places) > 40
    for place in places:
        after = visible_text[place.end() : place.end() + 25]
        assert after.startswith(" (among 99 sampled)"), visible_text[place.start() - 40 : place.end() + 40]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("98.2% (96.1 to 100.3)", "98.2% (96.1\u00a0to\u00a0100.3)"),
        ("0.05 ± 0.01", "0.05 ±\u00a00.01"),
        ("no interval", "no interval"),
    ],
)
def test_a_line_ends_before_a_bracket_never_in_it(cell: str, shown: str) -> None:
    assert unbroken(cell) == shown


def test_zeros_where_nobody_expects_them_still_make_a_page() -> None:
    text = re.sub(
        r'("(?:p\d\d_ms|users_per_second|ratio|rate|distance|quality)":)[\d.e-]+',
        r"\1 0.0",
        full_report().model_dump_json(),
    )
    assert Page(to_html(Report.model_validate_json(text))).tags.count("svg") >= 30
