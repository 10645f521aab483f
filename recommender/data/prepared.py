"""Prepared data: an interaction log as memory-mapped arrays, and the splits of it.

A folder with `meta.json`, `offsets.npy` int64 [U + 1], `items.npy` int32 [N] (rows, oldest first, user
after user), optional `times.npy` int64 [N], `users.parquet` (user_id) and `items.parquet` (row, item_id,
title, ...).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from recommender.data.config import SplitConfig, TemporalSplit
from recommender.errors import InputError
from recommender.files import read_json

if TYPE_CHECKING:
    import polars as pl

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Split:
    """What is trained on and what is held out, as positions inside each user's history.

    `train_end[u]`: the first `train_end[u]` interactions of user u may be trained on.
    `valid[u]`, `test[u]`: the position of the held-out interaction, or -1 where the user has none.
    The history of a held-out interaction is all that stands before it.
    """

    train_end: Int64
    valid: Int64
    test: Int64

    def targets(self, part: Literal["valid", "test"]) -> tuple[Int64, Int64]:
        """(users [n], positions [n]) of the held-out interactions of a part."""
        positions = self.valid if part == "valid" else self.test
        users = np.flatnonzero(positions >= 0)
        return users, positions[users]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set; arrays are memory-mapped and read-only."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """name, digest, users, items, interactions, ties, ... as written by `prepare`."""
        meta: dict[str, Any] = read_json(self.path / "meta.json")
        return meta

    @cached_property
    def offsets(self) -> Int64:
        """[U + 1]: user u's history is items[offsets[u]:offsets[u + 1]]."""
        array: Int64 = np.load(self.path / "offsets.npy", mmap_mode="r", allow_pickle=False)
        return array

    @cached_property
    def items(self) -> Int32:
        """[N] rows 1..n_items."""
        array: Int32 = np.load(self.path / "items.npy", mmap_mode="r", allow_pickle=False)
        return array

    @cached_property
    def times(self) -> Int64 | None:
        """[N] unix seconds, or None where the log has no time."""
        file = self.path / "times.npy"
        return np.load(file, mmap_mode="r", allow_pickle=False) if file.exists() else None

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Number of items in the catalogue; rows are 1..n_items."""
        return int(self.meta["items"])

    @property
    def digest(self) -> str:
        """SHA-256 of the prepared content; checkpoints remember it."""
        return str(self.meta["digest"])

    @property
    def catalogue_digest(self) -> str:
        """SHA-256 of the item map (row -> item id); models are bound to it."""
        return str(self.meta["catalogue_digest"])

    @cached_property
    def catalogue(self) -> "pl.DataFrame":
        """The items by row: columns row (1..n_items), item_id, title, further text."""
        import polars as pl  # who times made-up histories has none

        return pl.read_parquet(self.path / "items.parquet")

    @cached_property
    def user_ids(self) -> "pl.Series":
        """[U] the users' own ids (strings), user by user."""
        import polars as pl

        return pl.read_parquet(self.path / "users.parquet")["user_id"]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Item id -> row."""
        return dict(
            zip(
                self.catalogue["item_id"].to_list(),
                self.catalogue["row"].to_list(),
                strict=True,
            )
        )

    def lengths(self) -> Int64:
        """[U] interactions of each user."""
        return np.diff(self.offsets)

    def history(self, user: int, end: int | None = None) -> Int32:
        """The first `end` rows of a user (all by default), oldest first."""
        start = self.offsets[user]
        stop = self.offsets[user + 1] if end is None else start + end
        return self.items[start:stop]

    def split(self, how: SplitConfig) -> Split:
        """Hold out the last interaction of each user, or everything after a point in time."""
        from recommender.data.splits import leave_one_out, temporal

        if isinstance(how, TemporalSplit):
            if self.times is None:
                raise InputError(
                    f"data set {self.meta['name']!r} has no timestamps, so it cannot be split by time",
                    where="evaluation.split",
                    fix="use `split: leave-one-out`, or map a time column with data.columns.time",
                )
            return temporal(self.offsets, self.times, how.temporal)
        return leave_one_out(self.lengths())

    def train_counts(self, split: Split) -> Int64:
        """[n_items + 1] how often each row stands in the training part; row 0 is 0."""
        starts = self.offsets[:-1]
        index = np.arange(len(self.items)) - np.repeat(starts, self.lengths())
        kept = self.items[index < np.repeat(split.train_end, self.lengths())]
        return np.bincount(kept, minlength=self.n_items + 1).astype(np.int64)

    def users_in_chunks(self, users: Int64, size: int) -> Iterator[Int64]:
        """Cut an array of users into chunks of at most `size`."""
        for start in range(0, len(users), size):
            yield users[start : start + size]
