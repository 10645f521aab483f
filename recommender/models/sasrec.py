"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018).

Deviations from the paper, after the strong recipes of Klenitskiy & Vasilev (RecSys 2023): the residual is
taken on the un-normalised stream (pre-norm), attention has an output projection, the loss is the full
softmax. Dropout falls on the embeddings and on both updates of a block, not on attention weights.

`norm` and `padding` give the forms of public code, whose weights can be imported (`recommender.incoming`):
kang205/SASRec and pmixer/SASRec.pytorch until 2025 (`query`), pmixer's since then (`pre`, `post`). In these a
history is always padded to `max_length` and attends to its padding.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.cost import PartCost
from recommender.models.config import Norm, Padding
from recommender.models.cost import (
    ID_BYTES,
    LAYER_FLOPS,
    Heads,
    ModelParts,
    blocks_cost,
    row_bytes,
    shapes_of,
    stored_bytes,
)
from recommender.models.interface import ITEM_STD, Body, Hidden, History, SequentialRecommender


class SasrecBlock(nn.Module):
    """Attention, then a feed-forward of the same width; norms stand where `norm` says.

    pre: x + attention(norm(x)), then x + feed(norm(x)). query: z = norm(x), z + attention(z over x), then
    z = norm(x), z + feed(z). post: norm(x + attention(x)), then norm(x + feed(x)).
    """

    def __init__(
        self, hidden: int, heads: int, dropout: float, *, norm: Norm = "pre", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.feed_norm = nn.LayerNorm(hidden, eps=eps)
        self.up = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:
        """[B, T, H], additive mask [B, 1, T, T] -> [B, T, H], or [B, 1, H] with last_only."""
        normed = x if self.norm == "post" else self.attention_norm(x)
        memory = normed if self.norm == "pre" else x
        if last_only:
            x, normed, mask = x[:, -1:], normed[:, -1:], mask[:, :, -1:]
        update = self.dropout(self._attention(normed, memory, mask))
        match self.norm:
            case "pre":
                x = x + update
                return x + self._feed(self.feed_norm(x))
            case "query":
                x = self.feed_norm(normed + update)
                return x + self._feed(x)
            case "post":
                x = self.attention_norm(x + update)
                out: Tensor = self.feed_norm(x + self._feed(x))
                return out

    def _attention(self, asking: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Queries [B, Q, H] over keys and values [B, T, H] -> [B, Q, H]."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            self._split(self.query(asking)), self._split(key), self._split(value), attn_mask=mask
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _feed(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.down(self.dropout(functional.relu(self.up(x)))))
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

    Where padding is not `masked`, one token in front stands for all of it: its row of `positions` is 0, and
    attention counts it as often as the history has padding (`padded_mask`), so that a trimmed batch scores
    like one that is padded to `max_length`.
    """

    def __init__(
        self,
        *,
        n_items: int,
        max_length: int,
        layers: int,
        hidden: int,
        heads: int,
        dropout: float,
        norm: Norm = "pre",
        padding: Padding = "masked",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.n_items, self.max_length, self.padding = n_items, max_length, padding
        self.items = nn.Embedding(n_items + 1, hidden, padding_idx=0)
        self.positions = nn.Embedding(max_length + (padding != "masked"), hidden)
        self.body = BlockStack(
            [SasrecBlock(hidden, heads, dropout, norm=norm, eps=norm_eps) for _ in range(layers)]
        )
        self.final_norm = nn.LayerNorm(hidden, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=ITEM_STD)
        nn.init.normal_(self.positions.weight, std=ITEM_STD)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """See `SequentialRecommender.hidden`; T = L, or 1 + L where padding is not masked."""
        items = history.items
        length = items.shape[1]
        at = torch.arange(length, device=items.device).expand(items.shape)
        entry = self._embed(items)
        real: Tensor | None = None  # [B, T, 1], 0 where the stream is kept at zero
        if self.padding == "masked":
            mask = causal_mask(items, entry.dtype)
        else:
            padding = self.positions.weight[0].expand(items.shape[0], 1, -1)
            entry = torch.cat((self.dropout(padding), entry), dim=1)
            mask, at = padded_mask(items, self.max_length, entry.dtype), at + 1
            if self.padding == "zeroed":
                real = functional.pad((items != 0).to(entry.dtype), (1, 0)).unsqueeze(-1)
                entry = entry * real
        x, streams = entry, []
        order = list(range(len(self.body.blocks))) if blocks is None else list(blocks)
        for place, index in enumerate(order):
            last = last_only and place == len(order) - 1
            x = self.body.blocks[index](x, mask, last)
            if real is not None:
                x = x * (real[:, -1:] if last else real)
            streams.append(x)
        final = self.final_norm(x[:, -1:] if last_only else x)
        return Hidden(entry, tuple(streams), final, at)

    def _embed(self, items: Tensor) -> Tensor:
        """[B, L] rows -> [B, L, H]. Positions count from the newest item, so that a trimmed batch reads the
        same vectors as a padded one.
        """
        scaled = self.items(items) * self.items.embedding_dim**0.5
        first = self.positions.num_embeddings - items.shape[1]
        embedded: Tensor = self.dropout(scaled + self.positions.weight[first:])
        return embedded

    def project(self, states: Tensor) -> Tensor:
        """The hidden space is the item space."""
        return states

    def item_table(self) -> Tensor:
        """The item embeddings, tied."""
        return self.items.weight

    def bodies(self) -> Mapping[str, Body]:
        """One body, "user"."""
        return {"user": self.body}

    def costs(self) -> ModelParts:
        """See `SequentialRecommender.costs`."""
        blocks, width = list(self.body.blocks), self.items.embedding_dim
        heads = self.body.blocks[0].heads
        assert isinstance(heads, int)
        pre = ("attention_norm",) if self.body.blocks[0].norm == "pre" else ()  # keys read what it makes
        rows = {"item": row_bytes(self.items.weight) + ID_BYTES, "longest": row_bytes(self.positions.weight)}
        return ModelParts(
            embedding=PartCost(bytes=rows),
            blocks=blocks_cost(
                blocks, Heads(heads, width // heads, heads), last_only=True, also_everywhere=pre
            ),
            head=PartCost(
                elementwise={"user": LAYER_FLOPS * width}, bytes={"call": stored_bytes(self.final_norm)}
            ),
            extra_positions=int(self.padding != "masked"),
            shapes=shapes_of(blocks),
            weights=self.items.weight.dtype,
        )


def causal_mask(items: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: no later position, no padding; a large finite value, so padded rows give
    no NaN.
    """
    length = items.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
    allowed = causal & (items != 0).unsqueeze(1)
    return torch.where(allowed, 0.0, -1e9).to(dtype).unsqueeze(1)


def padded_mask(items: Tensor, max_length: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, 1 + L, 1 + L] over one padding token and L items.

    All padding in front of a history has the same state in every block, as it sees nothing but itself. The
    one token stands for the `p = max_length - items` places of it: its logit is raised by ln(p), which weighs
    it p times in the softmax, or it is masked where p is 0.
    """
    length = items.shape[1]
    real = functional.pad(items != 0, (1, 0), value=True)
    causal = torch.ones(1 + length, 1 + length, dtype=torch.bool, device=items.device).tril()
    mask = torch.where(causal & real.unsqueeze(1), 0.0, -1e9).to(dtype)
    pads = max_length - (items != 0).sum(dim=1)
    weight = torch.where(pads > 0, pads.clamp(min=1).to(dtype).log(), -1e9).to(dtype)
    # to itself the padding token is one token, so its own row stays as it is
    column = functional.pad(weight[:, None, None].expand(-1, length, 1), (0, length, 1, 0))
    return (mask + column).unsqueeze(1)
