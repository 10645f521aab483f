"""A table as plain text cells: Markdown, HTML and cards show the same ones."""

from collections.abc import Iterable
from typing import NamedTuple

from bench.report.schema import Comparison, Report


class Cell(NamedTuple):
    """What stands in a cell, and whether it is clearly `better` or `worse` than what it is compared with."""

    text: str
    tone: str = ""


class Table(NamedTuple):
    """A table; the first column names the row."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def row(*texts: str) -> tuple[Cell, ...]:
    """Cells without a tone."""
    return tuple(Cell(text) for text in texts)


def without_empty_columns(table: Table, absent: str) -> Table:
    """The table without columns in which nothing was measured; the first one stays."""
    kept = [
        index
        for index in range(len(table.header))
        if index == 0 or any(cells[index].text != absent for cells in table.rows)
    ]
    rows = [tuple(cells[index] for index in kept) for cells in table.rows]
    return table._replace(header=tuple(table.header[index] for index in kept), rows=rows)


def filled(tables: Iterable[Table]) -> list[Table]:
    """Those that have rows, and something in them beside names."""
    return [table for table in tables if table.rows and len(table.header) > 1]


def by_reference(report: Report) -> list[tuple[str, list[Comparison]]]:
    """Comparisons by what they refer to, in the order of the report."""
    references = dict.fromkeys(each.against for each in report.comparisons)
    return [(name, [each for each in report.comparisons if each.against == name]) for name in references]


def key_name(report: Report) -> str:
    """The metric of headlines: NDCG@10, else NDCG at the largest cut-off."""
    ks = report.evaluation.ks
    return f"ndcg@{10 if 10 in ks else max(ks, default=10)}"


def colour_of(report: Report, name: str) -> int:
    """The number of a candidate, which is its colour in every plot."""
    return next((i for i, each in enumerate(report.candidates) if each.name == name), 0)
