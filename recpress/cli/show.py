"""What people see (tables and messages, on stderr) and what programs read (one JSON document, on stdout)."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """A console on stderr; made anew, because tests and pipes exchange the stream."""
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140)


def document(value: Any) -> None:
    """Print one JSON document as one line on stdout."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def text(value: str) -> None:
    """Print text that is the answer of a command, on stdout."""
    print(value, flush=True)


def note(value: str, style: str = "") -> None:
    """Print a line for people."""
    console().print(Text(value, style=style), soft_wrap=True)


def failure(message: str, code: int, *, as_json: bool) -> None:
    """Print an error."""
    note(f"error: {message}", "red")
    if as_json:
        document({"status": "failed", "exit_code": code, "error": message})


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table for people; columns that start with '>' are numbers and stand right."""
    drawn = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        drawn.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console().print(drawn)


def seconds(value: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2.5 h`."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value: float | None) -> str:
    """`12 KB`, `3.4 MB`, `1.2 GB`."""
    if value is None:
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def reason(why: str | None) -> str:
    """`unchanged`, or why a stage runs; of many reasons the first two."""
    if why is None:
        return "unchanged"
    reasons = why.split("; ")
    more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    return f"runs: {'; '.join(reasons[:2])}{more}"
