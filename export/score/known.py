"""From item ids to an artifact's rows: whole batches at once, and what is not in its catalogue is counted."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from export.score.read import Histories
from recommender.data.filters import without_repeats
from recommender.scoring import HistoryArrays

Int64 = NDArray[np.int64]
Duplicates = Literal["keep", "first", "last"]
SEEN_CELLS = 4_000_000  # of one call: 32 MB


class Batch(NamedTuple):
    """Some users and their histories as rows of a catalogue."""

    users: pl.Series  # [U] strings
    rows: Int64  # [N] user after user, oldest first; unknown items are left out
    lengths: Int64  # [U]


class Strange(NamedTuple):
    """What a piece held beside known items."""

    ids: pl.Series  # unknown ids, as often as they came
    users: int  # how many users had any
    missing: int  # interactions that named no item


class Catalogue:
    """The item ids of an artifact; row 1 first."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.ids = pl.Series("item_id", list(item_ids), dtype=pl.String)
        self._known = pl.Enum(self.ids)

    def rows_of(self, found: Histories, duplicates: Duplicates = "keep") -> tuple[Batch, Strange]:
        """The histories as rows; `duplicates`: what stays of an item that a user has several times."""
        codes = found.items.cast(self._known, strict=False).to_physical()
        known = codes.is_not_null().to_numpy()
        owners = np.repeat(np.arange(len(found.users)), found.lengths)
        others = found.items.filter(~known)
        foreign = others.is_not_null().to_numpy()
        strange = Strange(
            others.drop_nulls(), len(np.unique(owners[~known][foreign])), int(np.count_nonzero(~foreign))
        )
        rows = codes.drop_nulls().cast(pl.Int64).to_numpy() + 1
        owners = owners[known]
        if duplicates != "keep" and len(rows):
            kept = without_repeats(owners, rows, duplicates)
            rows, owners = rows[kept], owners[kept]
        lengths = np.bincount(owners, minlength=len(found.users)).astype(np.int64)
        return Batch(found.users, rows, lengths), strange


def batches(found: Iterable[Batch], size: int, skip: int = 0) -> Iterator[Batch]:
    """The same users in batches of exactly `size` (the last one: what is left), without the first `skip`."""
    waiting: list[Batch] = []
    held = 0
    for batch in found:
        passed = min(skip, len(batch.users))
        skip -= passed
        waiting += _cut(batch, [passed, len(batch.users)])
        held += len(batch.users) - passed
        if held < size:
            continue
        *full, rest = _cut(_joined(waiting), [*range(0, held + 1, size), held])
        yield from full
        waiting, held = [rest], len(rest.users)
    if held:
        yield _joined(waiting)


def _cut(batch: Batch, at: Sequence[int]) -> list[Batch]:
    """The users from each place to the next."""
    edges = np.concatenate([[0], np.cumsum(batch.lengths)])
    return [
        Batch(batch.users[a:b], batch.rows[edges[a] : edges[b]], batch.lengths[a:b]) for a, b in pairwise(at)
    ]


def _joined(parts: Sequence[Batch]) -> Batch:
    return Batch(
        pl.concat([part.users for part in parts], rechunk=True),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def calls(batch: Batch, max_length: int, *, mask_seen: bool) -> Iterator[tuple[Int64, HistoryArrays]]:
    """The users of a batch that have a history, as padded arrays: (their places in the batch, arrays).

    One call, unless the longest history makes the padded past too large: then like lengths go together.
    """
    order = np.flatnonzero(batch.lengths)
    if len(order) * int(batch.lengths.max(initial=0)) > SEEN_CELLS:
        order = order[np.argsort(batch.lengths[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(batch.lengths)])
    while len(order):
        widths = np.maximum.accumulate(batch.lengths[order])
        cells = widths * np.arange(1, len(order) + 1)
        some = max(1, int(np.searchsorted(cells, SEEN_CELLS, side="right")))
        places, order = order[:some], order[some:]
        yield places, _padded(batch, places, starts[places], max_length, mask_seen)


def _padded(batch: Batch, places: Int64, starts: Int64, max_length: int, mask_seen: bool) -> HistoryArrays:
    lengths = batch.lengths[places]
    width = int(lengths.max())
    columns = np.arange(width)
    back = width - lengths[:, None]  # how much padding stands in front of each user
    used = columns >= back
    past = np.zeros((len(places), width), np.int64)
    past[used] = batch.rows[(starts[:, None] + columns - back)[used]]
    return HistoryArrays(past[:, -max_length:], past if mask_seen else None)
