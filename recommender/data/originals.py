"""Parsers of the original files of the named sources: how each one's log and items are written."""

import ast
import gzip
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recommender.data.config import Columns
from recommender.data.read_items import tidy
from recommender.data.readers import Scan, Types, reading, scan
from recommender.data.sources import Source
from recommender.errors import InputError

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """How the files of one kind of source are read."""

    columns: Columns
    scan: Scan
    items: Callable[[Path], pl.DataFrame]


def parser_of(source: Source) -> Parser:
    """The parser of a source that has original files."""
    if source.kind == "ml-100k":
        return Parser(Columns(), _headless("\t", "user_id", "item_id", "rating", "timestamp"), _items_100k)
    if source.kind == "ml-1m":
        # '::' separates; a separator of one character sees an empty column between two real ones.
        names = ("user_id", "_1", "item_id", "_2", "rating", "_3", "timestamp")
        return Parser(Columns(), _headless(":", *names), _items_1m)
    if source.kind == "ml-latest-small":
        return Parser(Columns(user="userId", item="movieId"), scan, _items_latest)
    if source.kind in ("amazon-2014", "amazon-2018"):
        columns = Columns(user="reviewerID", item="asin", time="unixReviewTime", rating="overall")
        return Parser(
            columns, _reviews(columns), _items_2014 if source.kind == "amazon-2014" else _items_2018
        )
    columns = Columns(item="parent_asin", time_unit="ms")
    return Parser(columns, _reviews(columns), _items_2023)


def _headless(separator: str, *names: str) -> Scan:
    """A text log whose columns have places but no names."""

    def read(file: Path, types: Types | None) -> pl.LazyFrame:
        given = {name: (types or {}).get(name) or pl.String for name in names}
        return pl.scan_csv(
            file, separator=separator, has_header=False, quote_char=None, schema=given, glob=False
        )

    return read


def _reviews(columns: Columns) -> Scan:
    """JSON lines with a fixed schema, so the long texts are never parsed."""
    schema: dict[str, Any] = {columns.user: pl.String, columns.item: pl.String}
    schema |= {str(columns.time): pl.Int64, str(columns.rating): pl.Float64}

    def read(file: Path, types: Types | None) -> pl.LazyFrame:
        return pl.scan_ndjson(file, schema=schema)

    return read


def _items_100k(file: Path) -> pl.DataFrame:
    rows = (line.split("|") for line in _lines(file, "latin-1"))
    return _table(
        (row[0], row[1], _genres(flags=row[5:])) for row in _of_width(rows, 5 + len(GENRES_100K), file)
    )


def _genres(flags: Sequence[str]) -> str:
    return "|".join(genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")


def _items_1m(file: Path) -> pl.DataFrame:
    rows = (line.split("::") for line in _lines(file, "latin-1"))
    return _table((row[0], row[1], row[2]) for row in _of_width(rows, 3, file))


def _items_latest(file: Path) -> pl.DataFrame:
    names = {"movieId": "item_id", "title": "title", "genres": "categories"}
    lazy = scan(file).select(pl.col(old).alias(new) for old, new in names.items())
    return tidy(reading(file, lazy.collect))


def _items_2014(file: Path) -> pl.DataFrame:
    """Lines are Python literals (single quotes), not JSON; `literal_eval` reads them and runs nothing."""

    def rows() -> Iterable[tuple[str, str, str]]:
        for number, line in enumerate(_lines(file, "utf-8"), start=1):
            try:
                item = ast.literal_eval(line)
                paths = [" > ".join(path) for path in item.get("categories", [])]
                yield item["asin"], _clean(item.get("title", "")), "; ".join(paths)
            except (ValueError, SyntaxError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise InputError(
                    f"line {number} is not a product record: {error!r}", where=str(file)
                ) from error

    return _table(rows())


def _items_2018(file: Path) -> pl.DataFrame:
    schema: dict[str, Any] = {"asin": pl.String, "title": pl.String, "category": pl.List(pl.String)}
    frame = reading(file, lambda: pl.scan_ndjson(file, schema=schema).collect())
    # A part of the pages was scraped with their script instead of the title.
    titles = ["" if title and "getTime" in title else _clean(title or "") for title in frame["title"]]
    return _joined(frame["asin"], titles, frame["category"])


def _items_2023(file: Path) -> pl.DataFrame:
    schema: dict[str, Any] = {"parent_asin": pl.String, "title": pl.String, "categories": pl.List(pl.String)}
    frame = reading(file, lambda: pl.scan_ndjson(file, schema=schema).collect())
    return _joined(
        frame["parent_asin"], [_clean(title or "") for title in frame["title"]], frame["categories"]
    )


def _joined(ids: pl.Series, titles: list[str], paths: pl.Series) -> pl.DataFrame:
    categories = paths.list.join(" > ", ignore_nulls=True)
    return tidy(pl.DataFrame({"item_id": ids, "title": titles, "categories": categories}))


def _table(rows: Iterable[tuple[str, str, str]]) -> pl.DataFrame:
    names = ("item_id", "title", "categories")
    return tidy(pl.DataFrame(list(rows), schema=dict.fromkeys(names, pl.String), orient="row"))


def _lines(file: Path, encoding: str) -> Iterable[str]:
    """The lines of a text file, packed or not, without their ends; empty ones left out."""
    try:
        packed = file.suffix == ".gz"
        with gzip.open(file, "rt", encoding=encoding) if packed else file.open(encoding=encoding) as text:
            yield from (line.rstrip("\r\n") for line in text if line.strip())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(file)) from error


def _of_width(rows: Iterable[list[str]], width: int, file: Path) -> Iterable[list[str]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise InputError(f"line {number} has {len(row)} fields, not {width}", where=str(file))
        yield row


def _clean(text: str) -> str:
    return " ".join(html.unescape(text).split())
