"""What is timed: batches of histories, the same ones for every candidate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recommender.data.prepared import Prepared, Split
from recommender.evaluate import histories
from recommender.scoring import HistoryArrays

LoadName = Literal["full", "real"]

USERS = 512
"""Users that a load tries to hold over all its batches, so that one short history does not stand for all."""


@dataclass(frozen=True)
class Load:
    """Batches of one size."""

    name: LoadName
    batch: int
    batches: Sequence[HistoryArrays]

    @property
    def length(self) -> float:
        """Mean number of items that a history holds."""
        return float(np.mean([np.count_nonzero(each.items) / len(each.items) for each in self.batches]))


def make_load(
    name: LoadName, prepared: Prepared, split: Split, *, batch: int, rounds: int, max_length: int, seed: int,
    mask_seen: bool = True,
) -> Load:  # fmt: skip
    """Batches for `rounds` rounds; a batch may come back where there are more rounds than batches.

    full: every history is `max_length` items long, drawn as often as they occur in the log. real: histories
    of test users as they come, drawn with replacement, left-padded to the longest of their batch.
    """
    rng = np.random.default_rng((seed, batch))
    count = min(rounds, max(8, USERS // batch))
    if name == "full":
        batches = [_full(prepared, batch, max_length, rng, mask_seen) for _ in range(count)]
    else:
        users, positions = split.targets("test")
        drawn = [rng.integers(0, len(users), batch) for _ in range(count)]
        batches = [
            histories(prepared, users[rows], positions[rows], max_length, mask_seen=mask_seen)
            for rows in drawn
        ]
    return Load(name, batch, batches)


def _full(
    prepared: Prepared, batch: int, max_length: int, rng: np.random.Generator, mask_seen: bool
) -> HistoryArrays:
    places = rng.integers(0, len(prepared.items), (batch, max_length))
    rows = np.asarray(prepared.items[places], dtype=np.int64)
    times = None
    if prepared.times is not None:
        times = np.sort(np.asarray(prepared.times[places], dtype=np.int64), axis=1)
    return HistoryArrays(items=rows, seen=rows if mask_seen else None, times=times)
