"""An interaction log in memory: one entry per interaction, ids as codes into tables of the user's strings."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Numbers = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """Interactions in file order.

    `users`, `items`: int32 [N], codes into `user_ids` and `item_ids` (distinct strings, ascending).
    `time` (unix seconds), `position`, `rating`: [N] numbers, or None where the log has none or nobody asked.
    `dropped`: rows that named no user or no item and were left out.
    """

    users: Int32
    items: Int32
    user_ids: pl.Series
    item_ids: pl.Series
    time: Numbers | None = None
    position: Numbers | None = None
    rating: Numbers | None = None
    dropped: int = 0

    def take(self, index: NDArray[Any]) -> "Log":
        """The interactions at `index` (bool mask or positions); the id tables stay."""

        def pick(column: Numbers | None) -> Numbers | None:
            return None if column is None else column[index]

        return replace(
            self,
            users=self.users[index],
            items=self.items[index],
            time=pick(self.time),
            position=pick(self.position),
            rating=pick(self.rating),
        )


def encode(ids: pl.Series) -> tuple[Int32, pl.Series]:
    """Codes int32 [N] of a column of integers, categoricals or strings (no nulls), and the table of its ids.

    The table holds each id once as a string, in ascending order; ids[i] is table[codes[i]].
    """
    if ids.dtype.is_integer():
        return _encode_integers(ids.to_numpy())
    categorical = ids if isinstance(ids.dtype, pl.Categorical) else ids.cast(pl.String).cast(category())
    physical = categorical.to_physical().to_numpy()
    first = np.full(int(physical.max()) + 1, -1, dtype=np.int64)
    first[physical[::-1]] = np.arange(len(physical) - 1, -1, -1)
    used = np.flatnonzero(first >= 0)
    place, table = _ascending(categorical.gather(first[used]).cast(pl.String))
    codes = np.empty(len(first), dtype=np.int32)
    codes[used] = place
    return codes[physical], table


def _encode_integers(numbers: Int64) -> tuple[Int32, pl.Series]:
    low, high = int(numbers.min()), int(numbers.max())
    if high - low >= max(4 * len(numbers), 1 << 20):  # too sparse for a table over the range
        distinct, inverse = np.unique(numbers, return_inverse=True)
        place, table = _ascending(pl.Series(distinct).cast(pl.String))
        return place[inverse], table
    shifted = numbers - low
    present = np.zeros(high - low + 1, dtype=np.bool_)
    present[shifted] = True
    distinct = np.flatnonzero(present)
    place, table = _ascending(pl.Series(distinct + low).cast(pl.String))
    codes = np.empty(len(present), dtype=np.int32)
    codes[distinct] = place
    return codes[shifted], table


def _ascending(ids: pl.Series) -> tuple[Int32, pl.Series]:
    """The place of each of these distinct strings in ascending order, and the strings in that order."""
    order = ids.arg_sort().to_numpy()
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return place, ids.gather(order)


def category() -> pl.Categorical:
    """A categorical type with a table of its own: codes start at 0, and the table dies with the column."""
    return pl.Categorical(pl.Categories.random())
