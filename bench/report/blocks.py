"""What a page is made of: sections of tables, figures, lists. Markdown and HTML write the same ones."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from bench.report.parts import Sample
from bench.report.table import Table


class Figure(NamedTuple):
    """One plot and what stands under it."""

    caption: str
    svg: Markup


class Figures(NamedTuple):
    """Plots that are read side by side; their numbers stand in tables as well, or in report.json."""

    title: str
    note: str
    figures: Sequence[Figure]


class Bullets(NamedTuple):
    """Sentences; `kind` is `holds`, `fails`, `open` or nothing."""

    title: str
    lines: Sequence[str]
    kind: str = ""


class Tree(NamedTuple):
    """(depth, text) of each line; a line belongs to the nearest one above it that is less deep."""

    title: str
    note: str
    nodes: Sequence[tuple[int, str]]


class Facts(NamedTuple):
    """(name, value) pairs."""

    title: str
    pairs: Sequence[tuple[str, str]]


class Command(NamedTuple):
    """A command line, as it was typed."""

    title: str
    text: str


class Samples(NamedTuple):
    """Test users and what candidates recommend to them."""

    samples: Sequence[Sample]


Block = Table | Figures | Bullets | Tree | Facts | Command | Samples


class Section(NamedTuple):
    """A heading and what stands under it."""

    anchor: str
    title: str
    note: str
    blocks: Sequence[Block]
