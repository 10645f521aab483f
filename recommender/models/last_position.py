"""The last block of a decoder, computed for the last position only.

A user vector reads one position. The last block still needs keys and values of all of them, but its query,
output projection and feed-forward only for the last: the fewer blocks are left, the more that saves.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, eager_attention_forward
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

KNOWN_BLOCKS = (
    LlamaDecoderLayer,
    MistralDecoderLayer,
    Qwen2DecoderLayer,
    Qwen3DecoderLayer,
    GemmaDecoderLayer,
)
"""Blocks of one shape: norm, attention with separate projections, residual, norm, gated MLP, residual."""


class LastPosition(nn.Module):
    """Stands in for a block and returns its output at the last position, [B, 1, H]."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def knows(block: nn.Module) -> bool:
        """True for the families whose block has the shape that `forward` computes."""
        return type(block) in KNOWN_BLOCKS

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> Tensor:
        """[B, T, H] -> [B, 1, H]; equal to the block's own output at the last position."""
        assert position_embeddings is not None
        block: Any = self.block
        last = hidden_states[:, -1:]
        last = last + self._attend(block.input_layernorm(hidden_states), attention_mask, position_embeddings)
        out: Tensor = last + block.mlp(block.post_attention_layernorm(last))
        return out

    def _attend(self, normed: Tensor, mask: Tensor | None, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        attention: Any = self.block.self_attn
        query = _heads(attention.q_proj(normed[:, -1:]), attention.head_dim)
        key = _heads(attention.k_proj(normed), attention.head_dim)
        value = _heads(attention.v_proj(normed), attention.head_dim)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos, sin = (part.unsqueeze(1) for part in cos_sin)  # [B or 1, 1, T, head_dim]
        query, key = _rotate(query, cos[:, :, -1:], sin[:, :, -1:]), _rotate(key, cos, sin)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, eager_attention_forward
        )
        mask = None if mask is None else mask[:, :, -1:]
        out, _ = attend(attention, query, key, value, mask, dropout=0.0, scaling=attention.scaling)
        projected: Tensor = attention.o_proj(out.reshape(*out.shape[:2], -1))
        return projected


def _heads(states: Tensor, head_dim: int) -> Tensor:
    """[B, T, heads * d] -> [B, heads, T, d]."""
    return states.view(*states.shape[:-1], -1, head_dim).transpose(1, 2)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split form that all known blocks use."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos + turned * sin
