"""The report as Markdown; titles and names cannot become markup."""

import re
import unicodedata

from bench.report import wording
from bench.report.schema import Environment, Report, Sample
from bench.report.tables import Table, tables
from bench.report.text import headlines

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_AT_START = re.compile(r"^(\d+(?=[.)](?: |$))|(?=[#+=-]))")  # headings, lists and rules begin so
# Characters that change the order in which a line is read, and so can disguise what stands in it.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKS = {"better": " ▲", "worse": " ▼", "": ""}


def plain(text: str) -> str:
    """Text that Markdown shows as it is: one line, no markup, no control or bidirectional characters."""
    visible = "".join(
        " " if c in _BIDI or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text
    )
    entities = visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # "://" and "www." are broken up because renderers make links of them without being asked.
    escaped = _SPECIAL.sub(r"\\\1", entities).replace("://", ":&#47;&#47;").replace("www.", "www&#46;")
    return _AT_START.sub(r"\1\\", " ".join(escaped.split()))


def to_markdown(report: Report) -> str:
    """The whole page."""
    title = f"# {plain(report.recipe)} on {plain(report.dataset.name)}"
    parts = [title, _about(report)]
    if lines := headlines(report):
        parts.append("\n".join(f"- {plain(line)}" for line in lines))
    parts += [markdown_table(table) for table in tables(report)]
    if report.sections.samples:
        parts.append("## Recommendations to a few test users")
        parts += [_sample(number, each) for number, each in enumerate(report.sections.samples, 1)]
    if report.sections.notes:
        parts.append(
            "## How to read this\n\n" + "\n".join(f"- {plain(note)}" for note in report.sections.notes)
        )
    parts.append(_environment(report.environment))
    return "\n\n".join(parts) + "\n"


def _about(report: Report) -> str:
    data = report.dataset
    variant = f" Variant: {plain(report.variant)}." if report.variant else ""
    text = (
        f"{data.users:,} users, {data.items:,} items, {data.interactions:,} interactions, histories of "
        f"{data.max_length} items at most. Seeds: {', '.join(map(str, report.seeds))}. "
        f"Made {plain(report.created)}.{variant}"
    )
    return f"{text}\n\n{code(report.command)}" if report.command else text


def code(text: str) -> str:
    """An indented code block: nothing in it can end it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def markdown_table(table: Table) -> str:
    """A heading, the note, the table; ▲ and ▼ mark what is clearly better or worse."""
    head = "| " + " | ".join(plain(name) for name in table.header) + " |"
    rule = "|" + " --- |" + " ---: |" * (len(table.header) - 1)
    rows = [
        "| " + " | ".join(plain(cell.text) + _MARKS[cell.tone] for cell in row) + " |" for row in table.rows
    ]
    return "\n\n".join([f"## {plain(table.title)}", plain(table.note), "\n".join([head, rule, *rows])])


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


def _environment(environment: Environment) -> str:
    lines = [f"- {key}: {plain(value)}" for key, value in facts(environment)]
    return "## Environment\n\n" + "\n".join(lines)


def facts(environment: Environment) -> list[tuple[str, str]]:
    """What is known of the machine, as (name, text)."""
    known = environment.model_dump(exclude_none=True)
    if "memory_bytes" in known:
        known["memory"] = wording.size(known.pop("memory_bytes"))
    return [(key, " ".join(value) if isinstance(value, list) else str(value)) for key, value in known.items()]
