"""Recommend what most users took: the baseline that every model must beat."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recommender.cost import PartCost
from recommender.models.cost import ModelParts
from recommender.models.interface import Hidden, History, SequentialRecommender


class Popularity(SequentialRecommender):
    """Scores are counts of the training part, the same for every history."""

    counts: Tensor

    def __init__(self, *, n_items: int, max_length: int, counts: Tensor | None = None) -> None:
        super().__init__()
        self.n_items, self.max_length = n_items, max_length
        start = torch.zeros(n_items + 1) if counts is None else counts.float()
        self.register_buffer("counts", start)

    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """A stream of ones, [B, L, 1]: there is nothing to compute."""
        items = history.items
        ones = torch.ones_like(items, dtype=self.counts.dtype).unsqueeze(-1)
        at = torch.arange(items.shape[1], device=items.device).expand(items.shape)
        return Hidden(ones, (), ones[:, -1:] if last_only else ones, at)

    def project(self, states: Tensor) -> Tensor:
        """[..., 1] as it is."""
        return states

    def item_table(self) -> Tensor:
        """[n_items + 1, 1] counts."""
        return self.counts.unsqueeze(1)

    def costs(self) -> ModelParts:
        """See `SequentialRecommender.costs`: nothing before the scores."""
        nothing = PartCost()
        return ModelParts(nothing, nothing, nothing, weights=self.counts.dtype)
