"""The public SASRec as a reference: the layout of its state dict and its forward, written out step by step.

After github.com/pmixer/SASRec.pytorch, in the versions that `recommender.incoming.sasrec` knows.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Version = Literal["zeroed", "attended", "pre", "post"]
VERSIONS: tuple[Version, ...] = ("zeroed", "attended", "pre", "post")


class Feed(nn.Module):
    """Two convolutions of kernel 1 over [B, H, L]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(hidden, hidden, kernel_size=1)
        self.conv2 = nn.Conv1d(hidden, hidden, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(torch.relu(self.conv1(x.transpose(1, 2)))).transpose(1, 2)
        return out


class PublicSasrec(nn.Module):
    """zeroed: until 2023. attended: until spring 2025. pre, post: since then."""

    def __init__(
        self, version: Version, *, items: int, hidden: int, maxlen: int, blocks: int, heads: int
    ) -> None:
        super().__init__()
        self.version, self.hidden, self.maxlen = version, hidden, maxlen

        def norms(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.LayerNorm(hidden, eps=1e-8) for _ in range(count))

        self.item_emb = nn.Embedding(items + 1, hidden)
        self.pos_emb = nn.Embedding(maxlen + (version != "zeroed"), hidden)
        self.attention_layernorms, self.forward_layernorms = norms(blocks), norms(blocks)
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(hidden, heads) for _ in range(blocks))
        self.forward_layers = nn.ModuleList(Feed(hidden) for _ in range(blocks))
        self.last_layernorm = nn.LayerNorm(hidden, eps=1e-8)
        with torch.no_grad():  # biases and norms, too, and also the rows of padding
            for weight in self.parameters():
                weight.normal_(std=0.4)

    def forward(self, window: Tensor) -> Tensor:
        """[B, maxlen] left-padded item numbers -> states [B, maxlen, H]."""
        real = (window != 0).unsqueeze(-1)
        places = torch.arange(self.maxlen).expand(window.shape)
        if self.version != "zeroed":
            places = (places + 1) * (window != 0)
        x = self.item_emb(window) * self.hidden**0.5 + self.pos_emb(places)
        x = x * real if self.version == "zeroed" else x
        later = ~torch.ones(self.maxlen, self.maxlen, dtype=torch.bool).tril()
        for n, attention in enumerate(self.attention_layers):
            first, second, feed = (
                part[n] for part in (self.attention_layernorms, self.forward_layernorms, self.forward_layers)
            )

            def attend(query: Tensor, memory: Tensor, attention: nn.Module = attention) -> Tensor:
                by_place = (query.transpose(0, 1), memory.transpose(0, 1), memory.transpose(0, 1))
                mixed: Tensor = attention(*by_place, attn_mask=later)[0]
                return mixed.transpose(0, 1)

            if self.version == "pre":
                x = x + attend(first(x), first(x))
                x = x + feed(second(x))
            elif self.version == "post":
                x = first(x + attend(x, x))
                x = second(x + feed(x))
            else:
                normed = first(x)
                z = second(normed + attend(normed, x))
                x = z + feed(z)
                x = x * real if self.version == "zeroed" else x
        states: Tensor = self.last_layernorm(x)
        return states

    def scores(self, histories: list[list[int]]) -> Tensor:
        """[B, items + 1] for histories of item numbers; only the newest `maxlen` are read."""
        window = torch.zeros(len(histories), self.maxlen, dtype=torch.long)
        for row, history in zip(window, histories, strict=True):
            newest = torch.tensor(history[-self.maxlen :])
            row[self.maxlen - len(newest) :] = newest
        with torch.no_grad():
            scored: Tensor = self(window)[:, -1] @ self.item_emb.weight.T
        return scored
