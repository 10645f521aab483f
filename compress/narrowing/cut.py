"""Make a recommender's decoder physically narrower: slice every weight, mend the config, build it anew."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from compress.narrowing.layout import LAYOUTS, Axis, Layout, Structure, Widths, family_problem
from recommender.errors import InputError
from recommender.models.config import HEADS_FILL_HIDDEN
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.linears import body_linears
from recommender.models.llm import LlmRecommender

BODY = "body.backbone."
AROUND: Mapping[str, tuple[Axis | None, ...]] = {
    "input_projection.weight": ("hidden", None),
    "input_projection.bias": ("hidden",),
    "output_projection.weight": (None, "hidden"),
    "prefix": (None, "hidden"),
    "suffix": (None, "hidden"),
    "items.weight": (None, None),
}
"""Weights outside the body."""


class Place(NamedTuple):
    """What lies along the axes of one weight."""

    block: int | None  # None: outside the blocks
    axes: tuple[Axis | None, ...]  # None: an axis that is never cut


class Kept(NamedTuple):
    """Members that stay, ascending: `hidden` is one set for the whole model, the others are per block."""

    hidden: Tensor
    blocks: Sequence[Mapping[Structure, Tensor]]  # ffn, heads, kv

    def of(self, structure: Structure, block: int | None) -> Tensor:
        """The kept members of a structure of a block."""
        if structure == "hidden":
            return self.hidden
        assert block is not None  # only the stream leaves the blocks
        return self.blocks[block][structure]


class Segment(NamedTuple):
    """A stretch of an axis: to which member each coordinate belongs."""

    structure: Structure
    members: Tensor


def layout_of(config: PreTrainedConfig) -> Layout:
    """Raises InputError for a family that is not known."""
    if wrong := family_problem(config.model_type):
        raise InputError(wrong, where="prune-width.of")
    return LAYOUTS[config.model_type]


def widths_in(config: PreTrainedConfig) -> Widths:
    """The widths that a Hugging Face config tells."""
    heads = config.num_attention_heads
    ffn = getattr(config, layout_of(config).ffn_entry) or 4 * config.hidden_size  # gpt2: null says that
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Widths(config.hidden_size, heads, kv_heads, head_dim, ffn)


def segments(axis: Axis, widths: Widths) -> list[Segment]:
    """To which members the coordinates of an axis belong, first to last."""
    heads = torch.arange(widths.heads).repeat_interleave(widths.head_dim)
    kv = torch.arange(widths.kv_heads).repeat_interleave(widths.head_dim)
    ffn = torch.arange(widths.ffn)
    match axis:
        case "hidden":
            return [Segment("hidden", torch.arange(widths.hidden))]
        case "ffn":
            return [Segment("ffn", ffn)]
        case "gate+up":
            return [Segment("ffn", torch.cat((ffn, ffn)))]
        case "heads":
            return [Segment("heads", heads)]
        case "kv":
            return [Segment("kv", kv)]
        case "q+k+v":
            return [Segment("heads", heads), Segment("kv", kv), Segment("kv", kv)]
        case "qkv by head":
            return [Segment("heads", torch.arange(widths.heads).repeat_interleave(3 * widths.head_dim))]


def places(model: LlmRecommender, layout: Layout) -> dict[str, Place]:
    """Every weight of the model's state by name. Raises InputError for one whose axes are not known."""
    path = _path_of_blocks(model)
    linears = body_linears(model.body)
    found = {}
    for name, value in model.state_dict().items():
        if name in AROUND:
            found[name] = Place(None, AROUND[name])
        elif name.startswith(path):
            number, _, below = name.removeprefix(path).partition(".")
            module, _, kind = below.rpartition(".")
            linear = linears.get(f"{number}.{module}")
            turned = linear is not None and linear.transposed
            axes = _axes_in_block(layout, module, kind, transposed=turned)
            found[name] = Place(int(number), _known(axes, name, value))
        else:  # final norm, word and position embeddings: the stream is their last axis
            axes = (*(None for _ in value.shape[:-1]), "hidden")
            wide = value.shape[-1] == model.body.config.hidden_size
            found[name] = Place(None, _known(axes if wide else None, name, value))
    return found


def _path_of_blocks(model: LlmRecommender) -> str:
    blocks = model.body.blocks
    (path,) = [name for name, module in model.named_modules() if module is blocks]
    return f"{path}."


def _axes_in_block(
    layout: Layout, module: str, kind: str, *, transposed: bool
) -> tuple[Axis | None, ...] | None:
    if module in layout.matrices:
        out, inputs = layout.matrices[module]
        if kind == "bias":
            return (out,)
        return (inputs, out) if transposed else (out, inputs)
    if module in layout.norms:
        return ("hidden",)
    if module.endswith((".q_norm", ".k_norm")):  # over the dimensions of one head
        return (None,)
    return None


def _known(axes: tuple[Axis | None, ...] | None, name: str, value: Tensor) -> tuple[Axis | None, ...]:
    if axes is None or len(axes) != value.ndim:
        raise InputError(
            f"the weight {name!r} {tuple(value.shape)} is none that this family is known to have, so it "
            "cannot be cut",
            where="prune-width.of",
            fix="leave prune-width out for this body, or cut its depth instead (prune-depth)",
        )
    return axes


def cut_weights(
    weights: Mapping[str, Tensor], where: Mapping[str, Place], widths: Widths, kept: Kept
) -> dict[str, Tensor]:
    """The weights without the members that do not stay; what stays is bit-identical and keeps its order.

    Channels of the stream that go are not the same as channels that are zero: a norm then averages over
    fewer of them, so with d' of d channels an RMS norm gives sqrt(d' / d) times what it gives with zeros.
    That is accepted, as in Minitron, and not rescaled: the channels that stay hold most of the stream's
    energy, so their own root mean square is nearer to that of the whole stream than the one with zeros is.
    """
    return {name: _cut(value, where[name], widths, kept) for name, value in weights.items()}


def _cut(value: Tensor, place: Place, widths: Widths, kept: Kept) -> Tensor:
    for number, axis in enumerate(place.axes):
        if axis is not None:
            value = value.index_select(number, _selected(axis, place.block, widths, kept).to(value.device))
    return value


def _selected(axis: Axis, block: int | None, widths: Widths, kept: Kept) -> Tensor:
    """Coordinates of an axis that stay, ascending."""
    stays = [
        torch.isin(segment.members, kept.of(segment.structure, block)) for segment in segments(axis, widths)
    ]
    return torch.cat(stays).nonzero().squeeze(1)


def removed_parameters(model: LlmRecommender, kept: Kept) -> int:
    """Numbers that `narrow` takes out of what a checkpoint stores (the unread row of words is none)."""
    widths = widths_in(model.body.config)
    where = places(model, layout_of(model.body.config))
    words = model.body.backbone.get_input_embeddings().weight
    assert isinstance(words, Tensor)
    removed = 0
    for name, value in model.state_dict().items():
        if value.data_ptr() != words.data_ptr():
            sizes = [
                size if axis is None else len(_selected(axis, where[name].block, widths, kept))
                for size, axis in zip(value.shape, where[name].axes, strict=True)
            ]
            removed += value.numel() - math.prod(sizes)
    return removed


def mended(config: PreTrainedConfig, widths: Widths) -> PreTrainedConfig:
    """A copy of a Hugging Face config with other widths; what a head's scores are scaled by stays.

    Raises InputError where stretched rotary positions are tied to hidden / heads (long-context Phi-3).
    """
    layout, new = layout_of(config), copy.deepcopy(config)
    stretched = "short_factor" in (getattr(config, "rope_parameters", None) or {})
    if stretched and widths.hidden // widths.heads != config.hidden_size // config.num_attention_heads:
        raise InputError(
            "the rotary positions of this body have factors for hidden / heads dimensions, which must stay",
            where="prune-width",
            fix="cut ffn alone, or hidden and heads by the same share",
        )
    if getattr(config, "word_embed_proj_dim", None) == config.hidden_size:  # OPT
        new.word_embed_proj_dim = widths.hidden
    new.hidden_size, new.num_attention_heads = widths.hidden, widths.heads
    if config.model_type not in HEADS_FILL_HIDDEN:
        new.num_key_value_heads = widths.kv_heads
        new.head_dim = widths.head_dim
    setattr(new, layout.ffn_entry, widths.ffn)
    return new


def narrow(model: LlmRecommender, kept: Kept, after: Widths) -> None:
    """Cut the model to the kept members, `after` in number, in place.

    The decoder is built anew from its mended config and takes the sliced weights, so that it is what
    `from_pretrained` makes of them. Raises InputError for weights whose axes are not known.
    """
    old = model.body.backbone
    before = widths_in(old.config)
    where = places(model, layout_of(old.config))
    weights = cut_weights(model.state_dict(), where, before, kept)
    config = mended(old.config, after)
    with torch.random.fork_rng():
        new = AutoModel.from_config(config, dtype=old.dtype)  # type: ignore[no-untyped-call]
    new.get_input_embeddings().requires_grad_(False)  # nothing reads them
    device = next(old.parameters()).device
    model.body = HuggingFaceBody(new.to(device), dropout=model.body.dropout)
    model.input_projection = _linear_like(model.input_projection, weights["input_projection.weight"])
    model.output_projection = _linear_like(model.output_projection, weights["output_projection.weight"])
    model.prefix, model.suffix = weights["prefix"], weights["suffix"]
    model.load_state_dict(weights)
    model.train(model.training)  # the new modules follow


def _linear_like(old: nn.Linear, weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    return nn.Linear(inputs, outputs, bias=old.bias is not None, device=weight.device, dtype=weight.dtype)
