"""Recommend what lies near the history in a space of item vectors: the baseline of an imported table."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recommender.cost import PartCost
from recommender.models.cost import ID_BYTES, ModelParts, row_bytes
from recommender.models.interface import Hidden, History, SequentialRecommender


class ItemVectors(SequentialRecommender):
    """Scores are products of the history's vector (mean, or last item) with every item's vector.

    `vectors` [n_items + 1, D], row 0 is padding and zero. Nothing is trained.
    """

    items: Tensor

    def __init__(self, vectors: Tensor, *, max_length: int, pool: Literal["mean", "last"] = "mean") -> None:
        super().__init__()
        self.n_items, self.max_length, self.pool = len(vectors) - 1, max_length, pool
        self.register_buffer("items", vectors)

    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """A stream of the history's vectors, [B, L, D]; `final` is their mean up to each position."""
        rows = history.items
        entry = self.items[rows]
        final = entry
        if self.pool == "mean":
            count = (rows != 0).to(entry.dtype).cumsum(dim=1).clamp(min=1)
            final = entry.cumsum(dim=1) / count.unsqueeze(-1)
        at = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
        return Hidden(entry, (), final[:, -1:] if last_only else final, at)

    def project(self, states: Tensor) -> Tensor:
        """[..., D] as it is."""
        return states

    def item_table(self) -> Tensor:
        """The vectors."""
        return self.items

    def costs(self) -> ModelParts:
        """See `SequentialRecommender.costs`: rows are looked up and, for a mean, added."""
        width = float(self.items.shape[1])
        added = {"item": width} if self.pool == "mean" else {}
        read = {"item" if self.pool == "mean" else "user": float(row_bytes(self.items) + ID_BYTES)}
        nothing = PartCost()
        return ModelParts(PartCost(elementwise=added, bytes=read), nothing, nothing, weights=self.items.dtype)
