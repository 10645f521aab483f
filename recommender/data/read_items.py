"""From an item file to the table item_id, title, further text: one row per item, everything a string."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recommender.data.config import Columns
from recommender.data.readers import as_id, reading, require_column, scan
from recommender.errors import InputError


def empty_items() -> pl.DataFrame:
    """The item table of a log without an item file."""
    return pl.DataFrame(schema={"item_id": pl.String, "title": pl.String})


def read_items(files: Sequence[Path], columns: Columns) -> pl.DataFrame:
    """Columns item_id, title and the text columns; of several rows with one id the first counts.

    Raises InputError for a file that cannot be read or a missing column.
    """
    frames = [_read(file, columns) for file in files]
    return tidy(pl.concat(frames, how="diagonal"))


def _read(file: Path, columns: Columns) -> pl.DataFrame:
    lazy = scan(file, None)
    schema = reading(file, lazy.collect_schema)
    names = schema.names()
    require_column(columns.item_key, names, file, "item_key")
    require_column(columns.title, names, file, "title")
    for column in columns.text:
        require_column(column, names, file, "text")
    taken = {columns.item_key, columns.title}
    further = [name for name in (columns.text or names) if name not in taken]
    clash = {"row", "item_id", "title"} & set(further)
    if clash:
        raise InputError(
            f"text column {min(clash)!r} has the name of a column of our own",
            where=str(file),
            fix="rename it, or leave it out with data.columns.text",
        )
    query = lazy.select(
        as_id(columns.item_key, schema[columns.item_key], pl.String()).alias("item_id"),
        _as_text(columns.title, schema[columns.title]).alias("title"),
        *(_as_text(name, schema[name]).alias(name) for name in further),
    )
    return reading(file, query.collect)


def _as_text(column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    if isinstance(dtype, pl.List | pl.Array):
        return value.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    if isinstance(dtype, pl.Struct):
        return value.struct.json_encode()
    return value.cast(pl.String)


def tidy(items: pl.DataFrame) -> pl.DataFrame:
    """Drop rows without an id and repeated ids (the first counts); missing text becomes ''."""
    return (
        items.filter(pl.col("item_id").is_not_null())
        .unique("item_id", keep="first", maintain_order=True)
        .with_columns(pl.exclude("item_id").fill_null(""))
    )
