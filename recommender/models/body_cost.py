"""The cost of a Hugging Face decoder whose family is known, counted from its modules."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from recommender.cost import PartCost
from recommender.models.cost import Heads, blocks_cost, norms, row_bytes, shapes_of, stored_bytes
from recommender.models.last_position import KNOWN_BLOCKS, LastPosition


class BodyCost(NamedTuple):
    """Of the blocks, and what the parts around them take from the body."""

    blocks: PartCost
    norm_flops: int  # of the final norm, per user
    norm_bytes: int
    position_bytes: int  # of one row of position embeddings, 0 without such a table
    shapes: tuple[tuple[int, int], ...]
    weights: torch.dtype


def body_cost(backbone: PreTrainedModel, blocks: nn.ModuleList) -> BodyCost | None:
    """Count a body; None for blocks of another family, which may hold more than these formulas know."""
    every = list(blocks)
    if not all(type(block) in KNOWN_BLOCKS for block in every):
        return None
    config = backbone.config
    heads = Heads(
        config.num_attention_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    )
    inside = {module for block in every for module in block.modules()}
    outside = [module for module in backbone.modules() if module not in inside]
    words = backbone.get_input_embeddings()
    final = [m for m in outside if isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("RMSNorm")]
    places = [m for m in outside if isinstance(m, nn.Embedding) and m is not words]
    return BodyCost(
        blocks=blocks_cost(every, heads, last_only=LastPosition.knows(every[-1])),
        norm_flops=sum(flops for module in final for _, flops in norms(module)),
        norm_bytes=sum(stored_bytes(module) for module in final),
        position_bytes=sum(row_bytes(module.weight) for module in places),
        shapes=shapes_of(every),
        weights=next(every[0].parameters()).dtype,
    )
