"""What the training loop minimises: a module that turns a batch into sums of named terms."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from recommender.losses import full_softmax, gbce, sampled_softmax
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.training.batches import Batch


class NextItem(nn.Module):
    """Cross-entropy of the next item at every real position (or at the last one only, by the batch's
    targets).
    """

    def __init__(
        self,
        model: SequentialRecommender,
        *,
        loss: Literal["full-softmax", "sampled-softmax", "gbce"] = "full-softmax",
        negatives: int = 256,
        gbce_t: float = 0.75,
    ) -> None:
        super().__init__()
        self.model = model
        self.term = partial(catalogue_loss, loss=loss, negatives=negatives, gbce_t=gbce_t)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"loss": sum over the batch's real positions}."""
        hidden = self.model.hidden(History(batch.items, times=batch.times))
        states, targets = at_targets(hidden.final, hidden, batch)
        return {"loss": self.term(self.model.project(states), self.model.item_table(), targets)}


def at_targets(states: Tensor, hidden: Hidden, batch: Batch) -> tuple[Tensor, Tensor]:
    """(states [N, H], target rows [N]) of the positions that have a target; states are [B, T, H]."""
    user, position = batch.targets.nonzero(as_tuple=True)
    return states[user, hidden.at[user, position]], batch.targets[user, position]


def catalogue_loss(
    vectors: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    loss: Literal["full-softmax", "sampled-softmax", "gbce"] = "full-softmax",
    negatives: int = 256,
    gbce_t: float = 0.75,
) -> Tensor:
    """The chosen loss of user vectors [N, D] against the item table, summed over N; negatives are uniform."""
    if loss == "full-softmax":
        return full_softmax(vectors, table, targets)
    n_rows, device = len(table), vectors.device
    if loss == "sampled-softmax":
        return sampled_softmax(vectors, table, targets, torch.randint(1, n_rows, (negatives,), device=device))
    drawn = torch.randint(1, n_rows - 1, (len(targets), negatives), device=device)
    drawn = drawn + (drawn >= targets.unsqueeze(1)).long()  # skips the target, stays uniform over the others
    return gbce(vectors, table, targets, drawn, t=gbce_t)
