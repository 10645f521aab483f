"""What a compression method looks at to choose: training histories, and the model's answers to them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.depth import Streams
from recommender.data.prepared import Prepared, Split
from recommender.errors import InputError
from recommender.evaluate import histories
from recommender.losses import full_softmax
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.ranking import micro_batches
from recommender.scoring import Int64

TOKENS_PER_CALL = 4096  # padded positions per call of the model


@dataclass(frozen=True)
class Calibration:
    """Training histories of a sample of users, and the item that validation holds out after each."""

    items: Int64  # [n, L] left-padded rows, shortest history first
    targets: Int64  # [n] rows
    users: Int64  # [n] whose they are

    def batches(self, device: torch.device) -> Iterator[tuple[History, Tensor]]:
        """(histories [b, l], targets [b]), trimmed to the longest history of each batch."""
        lengths = (self.items != 0).sum(axis=1)
        for users, width in micro_batches(lengths, TOKENS_PER_CALL):
            items = torch.from_numpy(self.items[users, self.items.shape[1] - width :]).to(device)
            yield History(items), torch.from_numpy(self.targets[users]).to(device)


def sample(prepared: Prepared, split: Split, *, users: int, max_length: int, seed: int) -> Calibration:
    """Draw at most `users` users; their histories end where the training part ends.

    Raises InputError where none of them has a training history and a validation item.
    """
    everyone, positions = split.targets("valid")
    if users < len(everyone):
        chosen = np.sort(np.random.default_rng(seed).choice(len(everyone), users, replace=False))
        everyone, positions = everyone[chosen], positions[chosen]
    items = histories(prepared, everyone, positions, max_length, mask_seen=False).items
    targets = np.asarray(prepared.items)[np.asarray(prepared.offsets)[everyone] + positions].astype(np.int64)
    if not items.any():
        raise InputError(
            "no user has a training history and a validation item: there is nothing to calibrate on",
            where="data",
            fix="give longer histories, or a split that leaves some for training",
        )
    order = np.argsort((items != 0).sum(axis=1), kind="stable")
    return Calibration(items[order], targets[order], everyone[order])


def streams(model: SequentialRecommender, calibration: Calibration) -> Iterator[Streams]:
    """The raw residual streams of every item position; prompt and padding are left out."""
    with torch.inference_mode():
        for history, _ in calibration.batches(device_of(model)):
            hidden = model.hidden(history)
            states = [at_items(state, hidden) for state in (hidden.entry, *hidden.blocks)]
            yield Streams(states, history.items != 0)


def at_items(state: Tensor, hidden: Hidden) -> Tensor:
    """[B, T, H] -> [B, L, H]: the state where each item position is read."""
    return state.gather(1, hidden.at.unsqueeze(-1).expand(-1, -1, state.shape[-1]))


def validation_loss(
    model: SequentialRecommender, calibration: Calibration
) -> Callable[[Sequence[int]], float]:
    """kept blocks -> mean cross-entropy over the catalogue of the held-out items (smooth, unlike NDCG)."""

    def evaluate(kept: Sequence[int]) -> float:
        total = 0.0
        with torch.inference_mode():
            table = model.item_table()
            for history, targets in calibration.batches(device_of(model)):
                hidden = model.hidden(history, blocks=kept, last_only=True)
                total += float(full_softmax(model.project(hidden.final[:, -1]), table, targets))
        return total / len(calibration.targets)

    return evaluate


def device_of(model: SequentialRecommender) -> torch.device:
    """Where the model's weights lie."""
    weight: Tensor = next(iter(model.state_dict().values()))
    return weight.device
