"""What every recommender of this project is: a user vector, an item table, and named bodies of blocks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from recommender.models.cost import ModelParts

ITEM_STD = 0.02
"""Spread of fresh item vectors: the first loss is ln(n_items), and Adam's first steps are large beside
it. Chosen on validation (docs/results/first.md)."""


class History(NamedTuple):
    """One padded batch of histories."""

    items: Tensor  # int64 [B, L] rows, left-padded with 0
    seen: Tensor | None = None  # int64 [B, S] rows that must not come back, padded with 0
    times: Tensor | None = None  # int64 [B, L] unix seconds


class Hidden(NamedTuple):
    """The residual stream of one pass."""

    entry: Tensor  # [B, T, H] raw stream before the first block
    blocks: tuple[Tensor, ...]  # after each block, raw, [B, T, H] each
    final: Tensor  # [B, T, H] after the last norm ([B, 1, H] with last_only)
    at: Tensor  # int64 [B, L]: where item position t is read


@runtime_checkable
class Body(Protocol):
    """A stack of blocks that can be cut."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, first to last."""
        ...

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these blocks, in this order, and mend every index and config that speaks of them."""
        ...


class SequentialRecommender(nn.Module, ABC):
    """Scores every item of the catalogue as the next one of a history: user vector x item table."""

    objective: Literal["next-item", "cloze"] = "next-item"
    max_length: int
    n_items: int

    @abstractmethod
    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """The residual stream of a batch.

        `blocks`: run only these blocks (in this order) instead of all. `last_only`: the caller reads
        nothing but the last position of `final`, so the last block may skip the others.
        """

    @abstractmethod
    def project(self, states: Tensor) -> Tensor:
        """Hidden states [..., H] to the item space [..., D]."""

    def user_vector(self, history: History) -> Tensor:
        """[B, D]: the vector that scores the next item; computes only what the last position needs."""
        hidden = self.hidden(history, last_only=True)
        return self.project(hidden.final[:, -1])

    @abstractmethod
    def item_table(self) -> Tensor:
        """Output side, [n_items + 1, D], row 0 is padding; bias, norm and temperature folded in."""

    def bodies(self) -> Mapping[str, Body]:
        """The stacks of blocks that can be pruned, by name ("user", "item")."""
        return {}

    def costs(self) -> ModelParts | None:
        """What a user vector has to compute and to read, as coefficients; None: not known.

        `recommender.models.cost.cost_card` makes formulas of it.
        """
        return None
