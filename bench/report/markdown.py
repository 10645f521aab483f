"""The report as Markdown; titles and names cannot become markup."""

import re

from bench.report import wording
from bench.report.blocks import Block, Bullets, Command, Facts, Figures, Samples, Section, Tree
from bench.report.headline import headline_table
from bench.report.parts import Sample
from bench.report.schema import Report
from bench.report.sections import sections
from bench.report.table import Table
from bench.report.visible import visible

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_AT_START = re.compile(r"^(\d+(?=[.)](?: |$))|(?=[#+=-]))")  # headings, lists and rules begin so
_MARKS = {"better": " ▲", "worse": " ▼", "": ""}
_KINDS = {"holds": "✓ ", "fails": "✗ ", "open": "? ", "": ""}


def plain(text: str) -> str:
    """Text that Markdown shows as it is: one line, no markup, no control or bidirectional characters."""
    entities = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # "://" and "www." are broken up because renderers make links of them without being asked.
    escaped = _SPECIAL.sub(r"\\\1", entities).replace("://", ":&#47;&#47;").replace("www.", "www&#46;")
    return _AT_START.sub(r"\1\\", " ".join(escaped.split()))


def to_markdown(report: Report) -> str:
    """The whole page; figures are left to the HTML page, their numbers stand in the tables."""
    parts = [f"# {plain(report.recipe)} on {plain(report.dataset.name)}", _about(report)]
    if (headline := headline_table(report)).rows:
        parts.append(markdown_table(headline))
    parts += [_section(section) for section in sections(report) if _shown(section)]
    return "\n\n".join(parts) + "\n"


def _shown(section: Section) -> bool:
    return any(not isinstance(block, Figures) for block in section.blocks)


def _section(section: Section) -> str:
    parts = [f"## {plain(section.title)}", plain(section.note) if section.note else ""]
    for block in section.blocks:
        title = "" if isinstance(block, Samples | Figures) else block.title
        if title and title != section.title:
            parts.append(f"### {plain(title)}")
        parts += _block(block)
    return "\n\n".join(part for part in parts if part)


def _block(block: Block) -> list[str]:
    match block:
        case Table():
            return [plain(block.note), grid(block)]
        case Bullets():
            return ["\n".join(f"- {_KINDS[block.kind]}{plain(line)}" for line in block.lines)]
        case Tree():
            return [
                plain(block.note),
                "\n".join(f"{'  ' * deep}- {plain(line)}" for deep, line in block.nodes),
            ]
        case Facts():
            return ["\n".join(f"- {plain(key)}: {plain(value)}" for key, value in block.pairs)]
        case Command():
            return [code(block.text)]
        case Samples():
            return [_sample(number, each) for number, each in enumerate(block.samples, 1)]
        case Figures():
            return []


def _about(report: Report) -> str:
    data = report.dataset
    variant = f" Variant: {plain(report.variant)}." if report.variant else ""
    return (
        f"{data.users:,} users, {data.items:,} items, {data.interactions:,} interactions, histories of "
        f"{data.max_length} items at most. Seeds: {', '.join(map(str, report.seeds))}. "
        f"Made {plain(wording.moment(report.created))}.{variant}"
    )


def code(text: str) -> str:
    """An indented code block: nothing in it can end it."""
    return "\n".join(f"    {visible(line)}" for line in text.splitlines())


def markdown_table(table: Table) -> str:
    """A heading, the note, the table."""
    return "\n\n".join(part for part in (f"## {plain(table.title)}", plain(table.note), grid(table)) if part)


def grid(table: Table) -> str:
    """The table alone; ▲ and ▼ mark what is clearly better or worse."""
    head = "| " + " | ".join(plain(name) for name in table.header) + " |"
    rule = "|" + " --- |" + " ---: |" * (len(table.header) - 1)
    rows = [
        "| " + " | ".join(plain(cell.text) + _MARKS[cell.tone] for cell in row) + " |" for row in table.rows
    ]
    return "\n".join([head, rule, *rows])


def _sample(number: int, sample: Sample) -> str:
    newest = "; ".join(plain(title) for title in sample.history)
    lines = [
        f"### User {number}",
        f"History of {sample.history_length}, newest last: {newest}",
        f"Next: **{plain(sample.next)}**",
    ]
    for each in sample.suggestions:
        rank = f"next item at rank {each.rank:,}" if each.rank else "next item not listed"
        shown = "\n".join(f"{place}. {plain(title)}" for place, title in enumerate(each.titles, 1))
        lines.append(f"{plain(each.candidate)} ({rank}):\n\n{shown}")
    return "\n\n".join(lines)
