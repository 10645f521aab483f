"""The users of a file, in its order, a few at a time: who, and with which history.

Two forms are read: one line per user, and an interaction log whose rows are grouped by user. A user of a log
who runs over the end of a piece waits for the next one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.config import Columns
from recommender.data.filters import chronological
from recommender.data.pieces import Piece, check_columns, columns_of, pieces
from recommender.data.read_log import as_numbers
from recommender.data.readers import as_id
from recommender.errors import InputError

Int64 = NDArray[np.int64]
AUTO_ORDER = (Columns().time, Columns().position)


class Histories(NamedTuple):
    """Some users and what each of them did, oldest first."""

    users: pl.Series  # [U] strings
    items: pl.Series  # [N] strings, user after user; null where the file names none
    lengths: Int64  # [U]; their sum is N


@dataclass(frozen=True)
class Lines:
    """One line per user: the history is a list of ids, or a text of ids with a separator between them."""

    user: str = "user_id"
    history: str = "history"
    separator: str = ","


@dataclass(frozen=True)
class Interactions:
    """An interaction log in which the rows of a user follow one another.

    `order_by`: the column (time or position) that orders a history; None: the order of the file.
    """

    user: str = "user_id"
    item: str = "item_id"
    order_by: str | None = None


Layout = Lines | Interactions


def check_layout(layout: Layout) -> None:
    """Raise InputError when one column is to be two things."""
    if isinstance(layout, Lines):
        roles = {"user": layout.user, "history": layout.history}
    else:
        roles = {"user": layout.user, "item": layout.item}
        roles |= {} if layout.order_by is None else {"order-by": layout.order_by}
    for (first, one), (second, other) in combinations(roles.items(), 2):
        if one == other:
            raise InputError(
                f"{one!r} is named as two columns",
                where=f"--{first} and --{second}",
                fix="give each its own column",
            )


def order_column(files: Sequence[Path], chosen: str | None) -> str | None:
    """What orders the histories of a log: the chosen column ('file': none), else time or position.

    Raises InputError when the chosen one is missing.
    """
    if chosen == "file":
        return None
    if chosen is not None:
        check_columns(files[0], [chosen])
        return chosen
    names = columns_of(files[0])
    return next((name for name in AUTO_ORDER if name in names), None)


def histories(files: Sequence[Path], layout: Layout) -> Iterator[Histories]:
    """All users of the files, piece by piece.

    Raises InputError for what cannot be read, a missing column, one of a wrong type, or a row without a user.
    """
    if isinstance(layout, Lines):
        columns = [layout.user, layout.history]
        for file in files:
            for piece in pieces(file, columns):
                yield _of_lines(piece, layout, file)
    else:
        yield from _of_log(files, layout)


def _of_lines(piece: Piece, layout: Lines, file: Path) -> Histories:
    frame = piece.frame.with_row_index("row", piece.first)
    frame = frame.filter(pl.col(layout.user).is_not_null() | pl.col(layout.history).is_not_null())
    users = _ids(frame, layout.user, file)
    _require_users(users, frame["row"], file)
    lists = frame[layout.history]
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    split = lists.dtype == pl.String
    if split:
        lists = lists.str.split(layout.separator)
    elif lists.dtype == pl.Null:
        lists = lists.cast(pl.List(pl.String))
    if not isinstance(lists.dtype, pl.List):
        raise InputError(
            f"column {layout.history!r} holds {lists.dtype}, neither lists of item ids nor text",
            where=str(file),
            fix="map the column of the histories, or say that the file is an interaction log",
        )
    lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    flat = lists.explode(empty_as_null=False, keep_nulls=False).alias(layout.history)
    items = _ids(flat.to_frame(), layout.history, file)
    if split:
        items = items.str.strip_chars()
        named = (items != "").fill_null(False).to_numpy()
        owners = np.repeat(np.arange(len(users)), lengths)
        items, lengths = items.filter(named), np.bincount(owners[named], minlength=len(users))
    return Histories(users, items, lengths)


def _of_log(files: Sequence[Path], layout: Interactions) -> Iterator[Histories]:
    waiting: pl.DataFrame | None = None
    columns = [layout.user, layout.item, *([layout.order_by] if layout.order_by else [])]
    for file in files:
        for piece in pieces(file, columns):
            rows = _log_rows(piece, layout, file)
            if rows.is_empty():
                continue
            rows = rows if waiting is None else pl.concat([waiting, rows], how="vertical_relaxed")
            runs = rows["user"].rle_id().to_numpy()
            cut = int(np.searchsorted(runs, runs[-1]))  # the last user may go on in the next piece
            waiting = rows[cut:]
            if cut:
                yield _grouped(rows[:cut], runs[:cut])
    if waiting is not None:
        yield _grouped(waiting, np.zeros(len(waiting), np.int64))


def _log_rows(piece: Piece, layout: Interactions, file: Path) -> pl.DataFrame:
    frame = piece.frame.with_row_index("row", piece.first)
    frame = frame.filter(pl.col(layout.user).is_not_null() | pl.col(layout.item).is_not_null())
    users = _ids(frame, layout.user, file)
    _require_users(users, frame["row"], file)
    rows = {"user": users, "item": _ids(frame, layout.item, file)}
    if layout.order_by is not None and len(frame):
        numbers = frame["row"].cast(pl.Int64).to_numpy() - 1
        rows["key"] = pl.Series(
            as_numbers(frame[layout.order_by], f"{file}, column {layout.order_by!r}", numbers)
        )
    return pl.DataFrame(rows)


def _grouped(rows: pl.DataFrame, runs: NDArray[Any]) -> Histories:
    starts = np.flatnonzero(np.r_[True, runs[1:] != runs[:-1]])
    lengths = np.diff(np.r_[starts, len(rows)])
    items = rows["item"]
    if "key" in rows.columns:
        items = items.gather(chronological(runs.astype(np.int32), rows["key"].to_numpy()))
    return Histories(rows["user"].gather(starts), items, lengths)


def _ids(frame: pl.DataFrame, column: str, file: Path) -> pl.Series:
    dtype = frame.schema[column]
    if dtype.is_nested() or dtype.is_temporal() or dtype in (pl.Binary, pl.Boolean):
        raise InputError(
            f"column {column!r} holds {dtype}, not ids", where=str(file), fix="map the right column"
        )
    ids = as_id(column, dtype, pl.String())
    return frame.select(pl.when(ids != "").then(ids).alias("id"))["id"]  # an empty text is no id


def _require_users(users: pl.Series, rows: pl.Series, file: Path) -> None:
    if users.has_nulls():
        first = rows.filter(users.is_null())[0]
        raise InputError(
            f"row {first} (the header not counted) names no user",
            where=str(file),
            fix="give each row its user",
        )
