"""The report as one HTML file without scripts, network or outside files; every text in it is escaped."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report import wording
from bench.report.blocks import Bullets, Command, Facts, Figures, Samples, Tree
from bench.report.headline import cards, headline_table
from bench.report.schema import Report
from bench.report.sections import sections
from bench.report.svg import COLOURS
from bench.report.table import Cell, Table
from bench.report.visible import clipped, visible


def to_html(report: Report) -> str:
    """The whole page."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # everywhere, whatever the template is called
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kinds = {
        "table": Table, "figures": Figures, "bullets": Bullets, "tree": Tree, "facts": Facts,
        "command": Command, "samples": Samples,
    }  # fmt: skip
    for name, block_kind in kinds.items():
        pages.tests[name] = lambda block, kind=block_kind: isinstance(block, kind)
    pages.filters |= {"unbroken": unbroken, "brief": clipped, "kind": kind}
    template = pages.get_template("report.html.jinja")
    made = wording.moment(report.created)
    return template.render(
        report=report,
        made=made,
        cards=cards(report),
        headline=headline_table(report),
        sections=sections(report),
        colours=COLOURS,
    )


def kind(cell: Cell) -> str:
    """Classes of a cell: its tone, and `long` where it has to be broken into lines."""
    words = max(map(len, cell.text.split()), default=0)
    return f"{cell.tone}{' long' if words > 24 or len(cell.text) > 44 else ''}".strip()


def unbroken(cell: str) -> str:
    """Figures whose lines end before a bracket or a spread, never inside it."""
    return re.sub(r"\([^()]*\)|± \S+", lambda found: found[0].replace(" ", "\u00a0"), cell)


def _harmless(value: object) -> object:
    """Every text that the template prints, without characters that could disguise the line around it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
