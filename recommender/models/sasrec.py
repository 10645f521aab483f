"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018).

Deviations from the paper, after the strong recipes of Klenitskiy & Vasilev (RecSys 2023): the residual is
taken on the un-normalised stream (pre-norm), attention has an output projection, the loss is the full
softmax. Dropout falls on the embeddings and on both updates of a block, not on attention weights.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.models.interface import ITEM_STD, Body, Hidden, History, SequentialRecommender


class SasrecBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.feed_norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:
        """[B, L, H], additive mask [B, 1, L, L] -> [B, L, H], or [B, 1, H] with last_only."""
        normed = self.attention_norm(x)
        if last_only:
            x, mask = x[:, -1:], mask[:, :, -1:]
            query = self._split(self.query(normed[:, -1:]))
        else:
            query = self._split(self.query(normed))
        key, value = self.key_value(normed).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            query, self._split(key), self._split(value), attn_mask=mask
        )
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        inner = self.dropout(functional.relu(self.up(self.feed_norm(x))))
        out: Tensor = x + self.dropout(self.down(inner))
        return out

    def _split(self, states: Tensor) -> Tensor:
        """[B, L, H] -> [B, heads, L, H / heads]."""
        return states.view(*states.shape[:-1], self.heads, -1).transpose(1, 2)


class BlockStack(nn.Module):
    """A plain stack of blocks that can be cut."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these blocks, in this order."""
        self.blocks = nn.ModuleList([self.blocks[i] for i in indices])


class SasRec(SequentialRecommender):
    """Item and position embeddings, causal blocks, final norm; scores are products with the item
    embeddings.
    """

    def __init__(
        self, *, n_items: int, max_length: int, layers: int, hidden: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.n_items, self.max_length = n_items, max_length
        self.items = nn.Embedding(n_items + 1, hidden, padding_idx=0)
        self.positions = nn.Embedding(max_length, hidden)
        self.body = BlockStack([SasrecBlock(hidden, heads, dropout) for _ in range(layers)])
        self.final_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=ITEM_STD)
        nn.init.normal_(self.positions.weight, std=ITEM_STD)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """See `SequentialRecommender.hidden`; T = L."""
        items = history.items
        length = items.shape[1]
        # Positions count from the newest item, so that a trimmed batch reads the same vectors as a padded
        # one.
        scaled = self.items(items) * self.items.embedding_dim**0.5
        entry = self.dropout(scaled + self.positions.weight[self.max_length - length :])
        mask = causal_mask(items, entry.dtype)
        x, streams = entry, []
        order = list(range(len(self.body.blocks))) if blocks is None else list(blocks)
        for place, index in enumerate(order):
            x = self.body.blocks[index](x, mask, last_only and place == len(order) - 1)
            streams.append(x)
        final = self.final_norm(x[:, -1:] if last_only else x)
        at = torch.arange(length, device=items.device).expand(items.shape)
        return Hidden(entry, tuple(streams), final, at)

    def project(self, states: Tensor) -> Tensor:
        """The hidden space is the item space."""
        return states

    def item_table(self) -> Tensor:
        """The item embeddings, tied."""
        return self.items.weight

    def bodies(self) -> Mapping[str, Body]:
        """One body, "user"."""
        return {"user": self.body}


def causal_mask(items: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: no later position, no padding; a large finite value, so padded rows give
    no NaN.
    """
    length = items.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
    allowed = causal & (items != 0).unsqueeze(1)
    return torch.where(allowed, 0.0, -1e9).to(dtype).unsqueeze(1)
