"""Whose row is whose: the numbering of a model that was trained elsewhere, matched to our catalogue by id."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recommender.data.prepared import Int64, Prepared
from recommender.data.readers import as_id, reading, scan
from recommender.errors import InputError, nearest

Missing = Literal["error", "mean", "zero", "fresh"]
SHOWN = 5
MAP_FORM = "a table with the columns index (the foreign row) and item_id (your id), or a JSON mapping of them"


@dataclass(frozen=True)
class Alignment:
    """Where each row of our catalogue stands in the foreign table."""

    foreign: Int64  # [n_items + 1] foreign rows; -1: not there, and row 0, which is padding
    dropped: int  # foreign items that our catalogue does not have

    @property
    def missing(self) -> Int64:
        """Our rows that the foreign table does not have."""
        return np.flatnonzero(self.foreign[1:] < 0) + 1

    def facts(self) -> dict[str, int]:
        """Counts for people and for stage.json."""
        missing = len(self.missing)
        return {
            "items_matched": len(self.foreign) - 1 - missing,
            "items_missing": missing,
            "items_dropped": self.dropped,
        }


def read_map(file: Path) -> pl.DataFrame:
    """Columns index (int64) and item_id (string) of an item map: CSV, TSV, JSON lines, Parquet or JSON.

    A JSON file holds records {"index", "item_id"}, {item_id: index}, {index: item_id}, or a list of ids by
    index, null where a row is no item (padding). Raises InputError for a file that cannot be read, a missing
    column, a value that is no index, and repeats.
    """
    if not file.is_file():
        raise InputError("no such item map", where=str(file), fix=f"give {MAP_FORM}")
    frame = _from_json(file) if file.suffix.lower() == ".json" else _from_table(file)
    index, number = pl.col("index"), pl.col("number")
    broken = number != index if frame.schema["index"].is_numeric() else pl.lit(False)  # 1.7 is cast to 1
    frame = frame.select(index.cast(pl.Int64, strict=False).alias("number"), "index", "item_id")
    wrong = frame.filter(number.is_null() | (number < 0) | broken | pl.col("item_id").is_null())
    if len(wrong):
        one = wrong.row(0, named=True)
        raise InputError(
            f"{len(wrong):,} of {len(frame):,} entries are no pair of a row and an id, "
            f"as index {one['index']!r} with item_id {one['item_id']!r}",
            where=str(file),
            fix="an index is a whole number from 0, an item_id is not empty",
        )
    frame = frame.select(pl.col("number").alias("index"), "item_id")
    for column in ("index", "item_id"):
        _refuse_repeats(frame[column], file)
    return frame


def _from_table(file: Path) -> pl.DataFrame:
    lazy = scan(file)
    schema = reading(file, lazy.collect_schema)
    for column in ("index", "item_id"):
        if column not in schema.names():
            raise InputError(
                f"the item map has no column {column!r}{nearest(column, schema.names())}",
                where=str(file),
                fix=f"give {MAP_FORM}",
            )
    query = lazy.select("index", as_id("item_id", schema["item_id"], pl.String()).alias("item_id"))
    return reading(file, query.collect)


def _from_json(file: Path) -> pl.DataFrame:
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"not valid JSON: {error}", where=str(file), fix=f"give {MAP_FORM}") from error
    pairs: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        numbers = all(isinstance(value, int) for value in document.values())
        if document and numbers and all(key.isdecimal() for key in document):
            raise InputError(
                "maps numbers to numbers, and nothing tells which are the rows and which the ids",
                where=str(file),
                fix='write records: [{"index": 1, "item_id": "3952"}, ...]',
            )
        pairs = [(value, key) if numbers else (key, value) for key, value in document.items()]
    elif isinstance(document, list) and all(isinstance(entry, dict) for entry in document):
        pairs = [(entry.get("index"), entry.get("item_id")) for entry in document]
    elif isinstance(document, list):
        pairs = [(row, entry) for row, entry in enumerate(document) if entry is not None]
    if not pairs or not all(isinstance(part, str | int | None) for pair in pairs for part in pair):
        raise InputError("is no item map", where=str(file), fix=f"give {MAP_FORM}")
    texts = [tuple(None if part is None else str(part) for part in pair) for pair in pairs]
    return pl.DataFrame(texts, schema={"index": pl.String, "item_id": pl.String}, orient="row")


def _refuse_repeats(values: pl.Series, file: Path) -> None:
    repeated = values.filter(values.is_duplicated())
    if len(repeated):
        raise InputError(
            f"the {values.name} {repeated[0]!r} stands there {repeated.eq(repeated[0]).sum()} times",
            where=str(file),
            fix="every row and every id may stand there once",
        )


def align(ids: Sequence[str], rows: Int64, prepared: Prepared, *, missing: Missing, where: Path) -> Alignment:
    """Match foreign rows `rows`, whose items have the ids `ids`, to the catalogue of `prepared`.

    Raises InputError when no id matches, or when an item of the catalogue is missing and `missing` is error.
    """
    ours = prepared.rows
    foreign = np.full(prepared.n_items + 1, -1, dtype=np.int64)
    found = [(ours[name], row) for name, row in zip(ids, rows.tolist(), strict=True) if name in ours]
    if not found:
        theirs, own = (", ".join(map(repr, list(names)[:SHOWN])) for names in (ids, ours))
        raise InputError(
            f"none of the {len(ids):,} ids is an item of the data set: these are like {theirs}, those of the "
            f"data set like {own}",
            where=str(where),
            fix="item_id must hold the ids of the interaction log, letter by letter",
        )
    at, values = np.array(found, dtype=np.int64).T
    foreign[at] = values
    aligned = Alignment(foreign, dropped=len(ids) - len(found))
    if len(aligned.missing) and missing == "error":
        names = prepared.catalogue.sort("row")["item_id"]
        examples = ", ".join(repr(names[int(row) - 1]) for row in aligned.missing[:SHOWN])
        raise InputError(
            f"{len(aligned.missing):,} of {prepared.n_items:,} items of the data set are missing: {examples}"
            f"{', ...' if len(aligned.missing) > SHOWN else ''}",
            where=str(where),
            fix="add them, or say what vector they get with missing: mean, zero or fresh",
        )
    return aligned


def gather(table: Tensor, aligned: Alignment, *, missing: Missing, seed: int) -> Tensor:
    """The foreign vectors [N, D] in the order of our rows, [n_items + 1, D]; row 0 is zero.

    Items that are not there get the mean of those that are, zeros, or (fresh) a draw with the mean and
    spread of each dimension.
    """
    known = torch.from_numpy(aligned.foreign >= 0)
    out = torch.zeros(len(known), table.shape[1])
    out[known] = table[torch.from_numpy(aligned.foreign)[known]]
    gaps = torch.from_numpy(aligned.missing)
    if len(gaps) and missing in ("mean", "fresh"):
        matched = out[known]
        mean, spread = matched.mean(dim=0), matched.std(dim=0, correction=0)
        noise = torch.randn(len(gaps), table.shape[1], generator=torch.Generator().manual_seed(seed))
        out[gaps] = mean if missing == "mean" else mean + spread * noise
    return out


def check_rows(rows: pl.Series, size: int, file: Path, table: str, *, first: int = 0) -> None:
    """Raise InputError where an index of the map is no row of a table with `size` rows."""
    beyond = rows.filter((rows >= size) | (rows < first))
    if len(beyond):
        padding = " (row 0 is padding)" if first else ""
        raise InputError(
            f"{len(beyond):,} indexes, as {beyond[0]}, are no row of {table}, whose items are the rows "
            f"{first} to {size - 1}{padding}",
            where=str(file),
            fix="give the numbering that the model was trained with",
        )
