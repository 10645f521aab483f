"""Item vectors -> input projection -> decoder body -> output projection -> scores over the catalogue.

The E4SRec / SLMRec form (arXiv 2405.17890, section 3): items enter a language model as projected vectors, and
the hidden state of the last token, projected back, is the user vector.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recommender.cost import PartCost
from recommender.models.cost import ID_BYTES, ModelParts, row_bytes, stored_bytes
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import Body, Hidden, History, SequentialRecommender


class LlmRecommender(SequentialRecommender):
    """A decoder over item vectors.

    `item_vectors` [n_items + 1, D]: frozen when `train_items` is False (SLMRec takes them from a SASRec),
    else the start of a trained, tied table. `prefix` [P, H] and `suffix` [S, H] are embedded prompts, frozen;
    a prompt's word embeddings are looked up once at build time, so that the word table itself can be dropped.
    `fixed_slots`: position numbers are those of a window of `max_length` items, padding included, as in
    E4SRec and SLMRec; else padding is not counted.
    """

    prefix: Tensor
    suffix: Tensor

    def __init__(
        self,
        body: HuggingFaceBody,
        *,
        item_vectors: Tensor,
        train_items: bool,
        max_length: int,
        dropout: float,
        prefix: Tensor | None = None,
        suffix: Tensor | None = None,
        fixed_slots: bool = False,
    ) -> None:
        super().__init__()
        self.fixed_slots = fixed_slots
        width, hidden = item_vectors.shape[1], body.config.hidden_size
        self.n_items, self.max_length = item_vectors.shape[0] - 1, max_length
        self.items = nn.Embedding(len(item_vectors), width, padding_idx=0, _weight=item_vectors)
        self.items.weight.requires_grad_(train_items)
        self.input_projection = nn.Linear(width, hidden)
        self.body = body
        self.output_projection = nn.Linear(hidden, width, bias=False)
        # The way back starts as the way in, turned round: an item's vector comes out as it went in, as in a
        # model with tied embeddings, and the blocks learn what to add.
        nn.init.orthogonal_(self.input_projection.weight)
        nn.init.zeros_(self.input_projection.bias)
        with torch.no_grad():
            self.output_projection.weight.copy_(self.input_projection.weight.T)
            self.input_projection.weight.mul_(width**0.5)  # item vectors start small, see ITEM_STD
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("prefix", torch.zeros(0, hidden) if prefix is None else prefix)
        self.register_buffer("suffix", torch.zeros(0, hidden) if suffix is None else suffix)

    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """See `SequentialRecommender.hidden`; T = P + L + S, and with a suffix the last item is read at T -
        1.
        """
        items = history.items
        embeds, mask = self._embed(items)
        run = self.body(
            embeds,
            mask,
            blocks=blocks,
            last_only=last_only,
            watch=not last_only,
            count_positions=len(self.prefix) > 0,
            places=self._places(items, embeds.shape[1]) if self.fixed_slots else None,
        )
        at = (torch.arange(items.shape[1], device=items.device) + len(self.prefix)).expand(items.shape)
        if len(self.suffix):
            at = torch.cat((at[:, :-1], torch.full_like(at[:, :1], embeds.shape[1] - 1)), dim=1)
        return Hidden(embeds if run.entry is None else run.entry, run.blocks, run.final, at)

    def _embed(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, H] and mask [B, T] of prompt, items, prompt."""
        batch = items.shape[0]  # not len(): export would fix the batch size
        embeds = self.dropout(self.input_projection(self.items(items)))
        mask = (items != 0).long()
        if not len(self.prefix) and not len(self.suffix):
            return embeds, mask
        parts = [self.prefix.expand(batch, -1, -1), embeds, self.suffix.expand(batch, -1, -1)]
        before, after = (mask.new_ones(batch, len(part)) for part in (self.prefix, self.suffix))
        return torch.cat(parts, dim=1), torch.cat((before, mask, after), dim=1)

    def _places(self, items: Tensor, length: int) -> Tensor:
        """Position numbers [T]: what follows the prefix stands where it stands in a full window."""
        place = torch.arange(length, device=items.device)
        return torch.where(place < len(self.prefix), place, place + self.max_length - items.shape[1])

    def project(self, states: Tensor) -> Tensor:
        """[..., H] -> [..., D]."""
        projected: Tensor = self.output_projection(states)
        return projected

    def item_table(self) -> Tensor:
        """The item vectors; input and output share them."""
        table: Tensor = self.items.weight
        return table

    def bodies(self) -> Mapping[str, Body]:
        """One body, "user"."""
        return {"user": self.body}

    def costs(self) -> ModelParts | None:
        """See `SequentialRecommender.costs`; None where the body's family is not known."""
        body = self.body.costs()
        if body is None:
            return None
        width, hidden = self.items.embedding_dim, self.body.config.hidden_size
        out = 2 * width * hidden
        prompts = sum(each.numel() * each.element_size() for each in (self.prefix, self.suffix))
        return ModelParts(
            embedding=PartCost(
                products={"item": out},
                bytes={
                    "call": stored_bytes(self.input_projection) + prompts,
                    "item": row_bytes(self.items.weight) + ID_BYTES,
                    **({"longest": body.position_bytes} if body.position_bytes else {}),
                },
            ),
            blocks=body.blocks,
            head=PartCost(
                products={"user": out},
                elementwise={"user": body.norm_flops},
                bytes={"call": body.norm_bytes + stored_bytes(self.output_projection)},
            ),
            extra_positions=len(self.prefix) + len(self.suffix),
            shapes=body.shapes,
            weights=body.weights,
            around={"embedding": (self.input_projection,), "head": (self.output_projection,)},
        )
