"""The catalogue of an artifact: item vectors, ids and titles by row, one folder per version.

    catalogue-1/
      items.parquet                      row, item_id, title, further text
      item_table.npy                     float32 [rows, D]: row 0 and the rows after the last item are zeros
      ids.utf8, ids.npy, ids.order.npy   ids for the runtime: the texts, where each begins, their order
      titles.utf8, titles.npy            titles, likewise; an item without one has an empty text
      ...                                and the graphs that hold or read the table

The arrays are read where they lie, so opening a catalogue of millions costs no memory that is not used.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.errors import InputError
from recommender.scoring import TABLE_BLOCK, whole_blocks

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
ROWS_AT_ONCE = 65_536
BLOCK = TABLE_BLOCK
"""64 to 1024 are alike in speed."""


def catalogue_name(version: int) -> str:
    """The folder of a version, relative to the artifact."""
    return f"catalogue-{version}"


def padded_rows(n_items: int, block: int = BLOCK) -> int:
    """Rows of a stored table: n_items + 1, filled up to whole blocks with rows of zeros."""
    return whole_blocks(n_items + 1, block)


def write_catalogue(folder: Path, items: pl.DataFrame, table: Float32, places: Int64 | None = None) -> None:
    """Write one version into an empty folder.

    items: `item_id`, perhaps `row` (1..n in any order; without it rows are given in the order of the lines),
    `title` and further text columns; table: float32 [n_items + 1, D], row 0 unused, or with `places` int64
    [n_items] any [m, D]: where in it the vector of each row stands, row 1 first. Raises InputError for ids
    that are missing or there twice, and for vectors that do not fit or are not finite.
    """
    items = _by_row(items)
    check_ids(items["item_id"])
    count = len(table) - 1 if places is None else len(places)
    if count != len(items):
        raise InputError(f"{count} item vectors for {len(items)} items", where=str(folder))
    items.write_parquet(folder / "items.parquet")
    _write_table(folder / "item_table.npy", table, places, count)
    _write_texts(folder, "ids", items["item_id"])
    np.save(folder / "ids.order.npy", items["item_id"].arg_sort().to_numpy().astype(np.int64))
    titles = items["title"].fill_null("") if "title" in items.columns else [""] * len(items)
    _write_texts(folder, "titles", titles)


def _by_row(items: pl.DataFrame) -> pl.DataFrame:
    items = items.with_columns(pl.col("item_id").cast(pl.String))
    if "row" in items.columns:
        return items.sort("row")
    return items.select(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("row"), pl.all())


def check_ids(ids: pl.Series) -> None:
    """Raise InputError for ids that are missing or there twice."""
    if ids.null_count():
        raise InputError(f"{ids.null_count()} items have no id", where="item_id")
    twice = ids.filter(ids.is_duplicated()).unique(maintain_order=True)
    if len(twice):
        raise InputError(f"{len(twice)} ids are there twice, the first is {twice[0]!r}", where="item_id")


def _write_table(path: Path, table: Float32, places: Int64 | None, n_items: int) -> None:
    """In pieces, so that a table that lies on the disk is never held in memory as a whole.

    Written, not mapped: a full disk is an error here, where it would kill a process that fills in a mapped
    file.
    """
    rows, width = padded_rows(n_items), table.shape[1]
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": (rows, width),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(4 * width))
        for start in range(0, n_items, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, n_items)
            taken = table[start + 1 : stop + 1] if places is None else table[places[start:stop]]
            part = np.ascontiguousarray(taken, dtype=np.float32)
            bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
            if len(bad):
                raise InputError(
                    f"the vector of row {start + bad[0] + 1} is not finite", where="item vectors"
                )
            file.write(part.data)
        file.write(bytes(4 * width * (rows - n_items - 1)))


def _write_texts(folder: Path, name: str, texts: Iterable[str]) -> None:
    """`NAME.utf8` and `NAME.npy` (int64 [n + 1], where each text begins)."""
    ends = [0]
    with (folder / f"{name}.utf8").open("wb") as file:
        for text in texts:
            ends.append(ends[-1] + file.write(text.encode("utf-8")))
    np.save(folder / f"{name}.npy", np.array(ends, np.int64))
