"""The last block of a decoder, computed for the last position only.

A user vector reads one position. The last block still needs keys and values of all of them, but its query,
output projection and feed-forward only for the last: the fewer blocks are left, the more that saves.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as softcapped_attention
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, eager_attention_forward
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

CosSin = tuple[Tensor, Tensor]
GATED = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, GemmaDecoderLayer)
SANDWICH = (Gemma2DecoderLayer, Gemma3DecoderLayer)  # a norm after attention and after the MLP, too
KNOWN_BLOCKS = (*GATED, *SANDWICH, Phi3DecoderLayer, GPTNeoXLayer, GPT2Block, OPTDecoderLayer)


class LastPosition(nn.Module):
    """Stands in for a block and returns its output at the last position, [B, 1, H] (GPT-2: T times)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def knows(block: nn.Module) -> bool:
        """True for the blocks that `forward` can compute; OPT's only where norms come first.

        Not with adapters: cutting a fused matrix reads its weight, to which theirs has not been added yet.
        """
        adapted = any(hasattr(module, "get_base_layer") for module in block.modules())
        return not adapted and type(block) in KNOWN_BLOCKS and getattr(block, "do_layer_norm_before", True)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, H] -> [B, 1, H]; equal to the block's own output at the last position."""
        given = inspect.signature(self.block.forward).bind(*args, **kwargs).arguments
        stream, mask = given["hidden_states"], given.get("attention_mask")
        cos_sin: Any = given.get("position_embeddings")
        block: Any = self.block
        last: Tensor = stream[:, -1:]
        match block:
            case GPT2Block():
                last = last + _gpt2_attention(block.attn, block.ln_1(stream), mask)
                out = last + block.mlp(block.ln_2(last))
                out = out.expand(-1, stream.shape[1], -1)  # GPT2Model insists on its own length
            case OPTDecoderLayer():
                last = last + _opt_attention(block.self_attn, block.self_attn_layer_norm(stream), mask)
                out = last + block.fc2(block.activation_fn(block.fc1(block.final_layer_norm(last))))
            case GPTNeoXLayer():
                update = _neox_attention(block.attention, block.input_layernorm(stream), mask, cos_sin)
                read = last if block.use_parallel_residual else last + update
                out = last + update + block.mlp(block.post_attention_layernorm(read))
            case Gemma2DecoderLayer() | Gemma3DecoderLayer():
                update = _rotary_attention(block.self_attn, block.input_layernorm(stream), mask, cos_sin)
                last = last + block.post_attention_layernorm(update)
                inner = block.mlp(block.pre_feedforward_layernorm(last))
                out = last + block.post_feedforward_layernorm(inner)
            case _:
                last = last + _rotary_attention(block.self_attn, block.input_layernorm(stream), mask, cos_sin)
                out = last + block.mlp(block.post_attention_layernorm(last))
        assert isinstance(out, Tensor)
        return out


def _rotary_attention(attention: Any, normed: Tensor, mask: Tensor | None, cos_sin: CosSin) -> Tensor:
    """The Llama family, with the head norms of Qwen3 and Gemma 3, Gemma 2's soft cap, Phi-3's matrix."""
    last = normed[:, -1:]
    if hasattr(attention, "qkv_proj"):
        width = attention.config.num_attention_heads * attention.head_dim
        weight = attention.qkv_proj.weight
        query = functional.linear(last, weight[:width])
        key, value = functional.linear(normed, weight[width:]).chunk(2, dim=-1)
    else:
        query, key, value = attention.q_proj(last), attention.k_proj(normed), attention.v_proj(normed)
    query, key, value = (_heads(states, attention.head_dim) for states in (query, key, value))
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = _rotate_both(query, key, cos_sin)
    cap = getattr(attention, "attn_logit_softcapping", None)
    return _out(attention.o_proj, _attend(attention, query, key, value, mask, attention.scaling, softcap=cap))


def _neox_attention(attention: Any, normed: Tensor, mask: Tensor | None, cos_sin: CosSin) -> Tensor:
    """GPT-NeoX: one matrix, query, key and value of a head side by side; rotary on a part of each head."""
    fused, size = attention.query_key_value, attention.head_size
    weight = fused.weight.view(-1, 3, size, normed.shape[-1])  # [heads, 3, d, H]
    bias = None if fused.bias is None else fused.bias.view(-1, 3, size)
    query, key, value = (
        _heads(
            functional.linear(
                states, weight[:, part].flatten(0, 1), None if bias is None else bias[:, part].flatten()
            ),
            size,
        )
        for part, states in enumerate((normed[:, -1:], normed, normed))
    )
    query, key = _rotate_both(query, key, cos_sin)
    return _out(attention.dense, _attend(attention, query, key, value, mask, attention.scaling))


def _gpt2_attention(attention: Any, normed: Tensor, mask: Tensor | None) -> Tensor:
    """GPT-2: one transposed matrix; a layer may divide its scores by its own number."""
    weights, biases = attention.c_attn.weight.chunk(3, dim=1), attention.c_attn.bias.chunk(3)
    query, key, value = (
        _heads(states @ weight + bias, attention.head_dim)
        for states, weight, bias in zip((normed[:, -1:], normed, normed), weights, biases, strict=True)
    )
    return _out(attention.c_proj, _attend(attention, query, key, value, mask, attention.scaling))


def _opt_attention(attention: Any, normed: Tensor, mask: Tensor | None) -> Tensor:
    """OPT: the query is scaled before the product."""
    query = _heads(attention.q_proj(normed[:, -1:]) * attention.scaling, attention.head_dim)
    key, value = (_heads(part(normed), attention.head_dim) for part in (attention.k_proj, attention.v_proj))
    return _out(attention.out_proj, _attend(attention, query, key, value, mask, 1.0))


def _attend(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Heads [B, n, 1, d] over [B, n, T, d] -> [B, 1, n d], with the body's own attention implementation."""
    eager = eager_attention_forward if softcap is None else softcapped_attention
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    mask = None if mask is None else mask[:, :, -1:]
    more = {} if softcap is None else {"softcap": softcap}
    out, _ = attend(attention, query, key, value, mask, dropout=0.0, scaling=scaling, **more)
    joined: Tensor = out.reshape(*out.shape[:2], -1)
    return joined


def _out(projection: nn.Module, states: Tensor) -> Tensor:
    projected: Tensor = projection(states)
    return projected


def _heads(states: Tensor, head_dim: int) -> Tensor:
    """[B, T, heads * d] -> [B, heads, T, d]."""
    return states.view(*states.shape[:-1], -1, head_dim).transpose(1, 2)


def _rotate_both(query: Tensor, key: Tensor, cos_sin: CosSin) -> CosSin:
    """Rotary position embedding of the last query and all keys."""
    cos, sin = (part.unsqueeze(1) for part in cos_sin)  # [B or 1, 1, T, rotary dims]
    return _rotate(query, cos[:, :, -1:], sin[:, :, -1:]), _rotate(key, cos, sin)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The half-split form that all known blocks use, on as many dimensions as `cos` has."""
    width = cos.shape[-1]
    turning, still = states[..., :width], states[..., width:]
    half = width // 2
    turned = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
    rotated = turning * cos + turned * sin
    return rotated if width == states.shape[-1] else torch.cat((rotated, still), dim=-1)
