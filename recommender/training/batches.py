"""Training batches: random users per step, sorted by length inside the step and cut into trimmed
micro-batches.

A step has the gradient of one big padded batch, at the price of its real positions only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recommender.data.prepared import Prepared, Split
from recommender.errors import InputError
from recommender.ranking import CALL_COST, micro_batches
from recommender.scoring import Int64

ITEMS_PER_POSITION = 250
"""Every backward pass writes the gradient of the whole item table: for so many items it takes as long as one
more position does (bodies and vectors of width 64 on one core).
"""


class Batch(NamedTuple):
    """One micro-batch."""

    items: Tensor  # int64 [b, L] inputs, left-padded with 0
    targets: Tensor  # int64 [b, L] the row to predict at each position; 0 = none
    times: Tensor | None = None  # int64 [b, L]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        times = None if self.times is None else self.times.to(device)
        return Batch(self.items.to(device), self.targets.to(device), times)


@dataclass(frozen=True)
class Step:
    """The share of one process in one optimizer step."""

    epoch: int
    index: int  # of this step in its epoch
    positions: int  # real target positions of the WHOLE step, over all processes
    batches: list[Batch]
    weight: float  # 0 for a process that got a user only to keep step, else 1


class TrainingSequences:
    """Next-item examples of the training part: inputs s[:-1], targets s[1:], the newest `max_length` of
    them.
    """

    def __init__(
        self, prepared: Prepared, split: Split, *, max_length: int, positions: Literal["all", "last"] = "all"
    ) -> None:
        """Raises InputError when no user has two training interactions."""
        self.max_length, self.positions = max_length, positions
        self.items, self.times, self.n_items = prepared.items, prepared.times, prepared.n_items
        self.users: Int64 = np.flatnonzero(split.train_end >= 2)
        if not len(self.users):
            raise InputError(
                "no user has two interactions to train on", where="data", fix="give longer histories"
            )
        self.ends = np.asarray(prepared.offsets)[self.users] + split.train_end[self.users]
        self.lengths: Int64 = np.minimum(split.train_end[self.users] - 1, max_length)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Optimizer steps of one epoch; the last may be smaller."""
        return -(-len(self.users) // batch_size)

    def epoch(
        self,
        epoch: int,
        *,
        seed: int,
        batch_size: int,
        tokens: int,
        call_cost: int = CALL_COST,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Step]:
        """The steps of an epoch from `start` on; a pure function of (seed, epoch), so a resumed run sees the
        same. `tokens` and `call_cost` are those of `micro_batches`.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self.users))
        for index in range(start, self.steps_per_epoch(batch_size)):
            chosen = order[index * batch_size : (index + 1) * batch_size]
            positions = len(chosen) if self.positions == "last" else int(self.lengths[chosen].sum())
            mine, weight = chosen[rank::world], 1.0
            if not len(mine):
                mine, weight = chosen[:1], 0.0
            yield Step(epoch, index, positions, list(self._micro_batches(mine, tokens, call_cost)), weight)

    def _micro_batches(self, chosen: Int64, tokens: int, call_cost: int) -> Iterator[Batch]:
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        cost = call_cost + self.n_items // ITEMS_PER_POSITION
        for users, width in micro_batches(self.lengths[chosen], tokens, cost):
            yield self.batch(chosen[users], width)

    def batch(self, chosen: Int64, width: int) -> Batch:
        """The examples of some sequences (indices into `users`) as one batch [b, width]."""
        index = self.ends[chosen][:, None] - 1 - np.arange(width, 0, -1)[None, :]
        real = np.arange(width, 0, -1)[None, :] <= self.lengths[chosen][:, None]
        index = np.where(real, index, 0)
        items = torch.from_numpy(np.where(real, self.items[index], 0).astype(np.int64))
        targets = torch.from_numpy(np.where(real, self.items[index + 1], 0).astype(np.int64))
        if self.positions == "last":
            targets[:, :-1] = 0
        times = None
        if self.times is not None:
            times = torch.from_numpy(np.where(real, self.times[index], 0).astype(np.int64))
        return Batch(items, targets, times)
