"""The pages in a real browser: no script, no network, nothing cut on a phone, nothing lost on paper."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.report.html import to_html
from bench.report.schema import Report
from tests.bench.report.browser import Page, browser, found_browser
from tests.bench.report.full import full_report
from tests.bench.report.variations import bare_report, hostile_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found_browser() is None, reason="no chromium or chrome on PATH: pages are not opened"),
]
REPORTS = {"full": full_report, "hostile": hostile_report, "bare": bare_report}

COVERED = """[...document.querySelectorAll('svg.plot')].flatMap(svg => {
  const box = svg.getBoundingClientRect(), name = svg.getAttribute('aria-label').slice(0, 60);
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return texts.flatMap(([a, r], i) => [
    ...(r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1
      ? [`${name}: "${a}" is cut`] : []),
    ...texts.slice(i + 1).filter(([b, s]) =>
      Math.min(r.right, s.right) - Math.max(r.left, s.left) > 1 &&
      Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 3
    ).map(([b, s]) => `${name}: "${a}" covers "${b}"`)]);
})"""
SMALLEST = """Math.min(...[...document.querySelectorAll('svg.plot text')].map(t => {
  const m = t.getScreenCTM();
  return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b);
}))"""
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(
  e => !e.closest('.scroll') && !e.closest('svg') &&
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = found_browser()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in REPORTS.items():
        (folder / f"{name}.html").write_text(to_html(make()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in REPORTS}


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_opens_without_script_error_or_network(page: Page, files: dict[str, Path], name: str) -> None:
    page.open(files[name])
    assert page.named("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    assert [each["request"]["url"] for each in page.named("Network.requestWillBeSent")] == [
        files[name].as_uri()
    ]
    assert page.value("document.scripts.length") == 0
    assert page.named("Page.javascriptDialogOpening") == []


def test_the_test_would_see_a_script_and_a_request(
    page: Page, files: dict[str, Path], tmp_path: Path
) -> None:
    """The same page with its guard taken out and a script put in, and once with the guard in place."""
    html = files["bare"].read_text()
    evil = "<script>console.log(1)</script><img src='missing.png'>"
    guarded = tmp_path / "guarded.html"
    guarded.write_text(html.replace("<main>", f"<main>{evil}"))
    page.open(guarded)
    assert page.named("Runtime.consoleAPICalled") == []
    assert page.named("Log.entryAdded"), "the browser reports what the page's own policy refused"
    open_door = tmp_path / "open.html"
    open_door.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html).replace("<main>", f"<main>{evil}"))
    page.open(open_door)
    assert page.named("Runtime.consoleAPICalled")
    assert len(page.named("Network.requestWillBeSent")) == 2


def test_hostile_names_do_nothing(page: Page, files: dict[str, Path]) -> None:
    page.open(files["hostile"])
    assert page.value("document.title") != "owned"
    assert page.value("document.querySelectorAll('img, script, [onload], [onerror]').length") == 0
    assert page.value("document.querySelector('h1').textContent").startswith("<script>")


@pytest.mark.parametrize("name", ["full", "hostile"])
def test_every_plot_is_drawn(page: Page, files: dict[str, Path], name: str) -> None:
    page.open(files[name])
    sizes = page.value(
        "[...document.querySelectorAll('svg.plot')]"
        ".map(s => [s.getBoundingClientRect().width, s.getBBox().width])"
    )
    assert len(sizes) >= 30 and all(shown > 250 and drawn > 300 for shown, drawn in sizes)


@pytest.mark.parametrize("name", ["full", "hostile"])
@pytest.mark.parametrize("width", [390, 1200])
def test_no_text_of_a_plot_is_cut_or_covered(
    page: Page, files: dict[str, Path], name: str, width: int
) -> None:
    page.open(files[name], width=width, mobile=width < 500)
    assert page.value(COVERED) == []


def test_the_test_would_see_covered_text(page: Page, files: dict[str, Path]) -> None:
    page.open(files["full"])
    page.value("document.querySelectorAll('svg.plot text').forEach(t => t.setAttribute('x', 60))")
    assert len(page.value(COVERED)) > 20


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_phone_shows_the_whole_width(page: Page, files: dict[str, Path], name: str, width: int) -> None:
    page.open(files[name], width=width, height=844, mobile=True)
    assert page.value("document.documentElement.scrollWidth") == width
    assert page.value(TOO_WIDE) == []


def test_text_of_plots_stays_readable_on_a_phone(page: Page, files: dict[str, Path]) -> None:
    page.open(files["full"], width=390, height=844, mobile=True)
    assert page.value(SMALLEST) >= 10
    smallest = "Math.min(...[...document.querySelectorAll('p, td, th, li, dt, dd, small')].map(" \
        "e => parseFloat(getComputedStyle(e).fontSize)))"  # fmt: skip
    assert page.value(smallest) >= 12


def test_wide_tables_scroll_in_boxes_of_their_own(page: Page, files: dict[str, Path]) -> None:
    page.open(files["full"], width=390, height=844, mobile=True)
    wide = page.value(
        "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth).length"
    )
    assert wide >= 5


@pytest.mark.parametrize("name", REPORTS)
def test_paper_shows_all_of_every_table(page: Page, files: dict[str, Path], name: str) -> None:
    page.open(files[name])
    assert page.pdf().startswith(b"%PDF-")
    page.open(files[name], width=700)  # about the width of A4 between its margins
    page.send("Emulation.setEmulatedMedia", media="print")
    try:
        right = (
            "Math.max(...[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right))"
        )
        assert page.value(right) <= 700
        assert page.value("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert page.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    finally:
        page.send("Emulation.setEmulatedMedia", media="")


def test_a_dark_screen_gets_dark_paper(page: Page, files: dict[str, Path]) -> None:
    page.open(files["full"])
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.value(colour) == "rgb(250, 250, 249)"
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert page.value(colour) == "rgb(20, 23, 27)"
    finally:
        page.send("Emulation.setEmulatedMedia", features=[])


def many() -> Report:
    """Thirteen candidates."""
    text = full_report().model_dump_json()
    document = full_report().as_json()
    for number in range(8):
        copy = Report.model_validate_json(text.replace('"student"', f'"student-again-{number}"')).as_json()
        document["candidates"].append(
            next(c for c in copy["candidates"] if c["name"].startswith("student-again"))
        )
        for pareto, other in zip(document["sections"]["pareto"], copy["sections"]["pareto"], strict=True):
            point = next(p for p in other["points"] if p["candidate"].startswith("student-again"))
            pareto["points"].append(point | {"quality": point["quality"] * (1 - number / 100)})
    return Report.model_validate(document)


def test_thirteen_candidates_leave_all_names_readable(page: Page, tmp_path: Path) -> None:
    (tmp_path / "many.html").write_text(to_html(many()), encoding="utf-8")
    page.open(tmp_path / "many.html")
    assert page.value(COVERED) == []
