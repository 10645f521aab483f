"""A whole catalogue from elsewhere: item vectors with their ids and titles, in the order of the file."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.readers import as_id, reading, scan
from recommender.errors import InputError, nearest
from recommender.incoming.items import check_rows, read_map
from recommender.incoming.vectors import read_vectors


def read_catalogue(
    vectors: Path, items: Path | None = None, titles: Path | None = None
) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """(`item_id` and, with `titles`, `title`; vectors float32 [n, D]).

    `items`: an item map (index, item_id), where the file of vectors has no ids; only the rows that it names
    are taken. Raises InputError for files that cannot be read, ids that nothing tells, and NaN.
    """
    found = read_vectors(vectors)
    table = found.table.numpy()
    if found.ids is not None:
        frame = pl.DataFrame({"item_id": found.ids})
    elif items is None:
        raise InputError(
            "nothing tells which row of the table is which item",
            where=str(vectors),
            fix="give --items, a file with the columns index (the row) and item_id, or a Parquet table with "
            "a column item_id",
        )
    else:
        numbers = read_map(items)
        check_rows(numbers["index"], len(table), items, vectors.name)
        frame, rows = numbers.select("item_id"), numbers["index"].to_numpy()
        if not np.array_equal(rows, np.arange(len(table))):  # else the table would be copied for nothing
            table = table[rows]
    return (frame if titles is None else _titled(frame, titles)), table


def _titled(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    lazy = scan(file)
    schema = reading(file, lazy.collect_schema)
    for column in ("item_id", "title"):
        if column not in schema.names():
            raise InputError(f"no column {column!r}{nearest(column, schema.names())}", where=str(file))
    ids = as_id("item_id", schema["item_id"], pl.String()).alias("item_id")
    query = lazy.select(ids, pl.col("title").cast(pl.String)).unique("item_id", keep="last")
    return frame.join(reading(file, query.collect), on="item_id", how="left", maintain_order="left")
