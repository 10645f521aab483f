"""A Hugging Face decoder as a stack of blocks that can be watched, cut, saved and loaded back."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from recommender.errors import InputError
from recommender.models.body_cost import BodyCost, body_cost
from recommender.models.last_position import LastPosition


class BodyRun(NamedTuple):
    """What one pass through a body leaves behind; the raw streams are empty unless asked for."""

    entry: Tensor | None  # [B, T, H] before the first block
    blocks: tuple[Tensor, ...]  # after each block, raw
    final: Tensor  # [B, T, H] after the last norm, [B, 1, H] with last_only


class HuggingFaceBody(nn.Module):
    """Blocks and final norm of a decoder from `transformers`; word embeddings are dropped by `build`.

    `dropout` falls on each block's update of the residual stream while training: a small data set needs
    it, and most decoder families have none of their own.
    """

    def __init__(self, backbone: PreTrainedModel, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = dropout
        self._find_blocks()  # fail now, not in the first batch

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the decoder, kept right by `keep`."""
        return self.backbone.config

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's own list of blocks."""
        owner, name = self._find_blocks()
        found = getattr(owner, name)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def counts_positions(self) -> bool:
        """True where positions are absolute, so that padding must not be counted."""
        return self.config.model_type == "gpt2"

    def _find_blocks(self) -> tuple[nn.Module, str]:
        """Owner and attribute of the shallowest ModuleList as long as num_hidden_layers."""
        depth = self.backbone.config.num_hidden_layers
        found = [
            name
            for name, module in self.backbone.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth
        ]
        if not found:
            raise InputError(
                f"no list of {depth} blocks in a {type(self.backbone).__name__}: is it a decoder?",
                where="model.backbone",
            )
        path = min(found, key=lambda name: name.count("."))
        owner, _, attribute = path.rpartition(".")
        return self.backbone.get_submodule(owner), attribute

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor,
        *,
        blocks: Sequence[int] | None = None,
        last_only: bool = False,
        watch: bool = True,
        count_positions: bool = False,
        places: Tensor | None = None,
    ) -> BodyRun:
        """Run the body on embeddings [B, T, H] with mask [B, T] (1 = real).

        `blocks`: only these. `last_only`: `final` is [B, 1, H] and the last block computes no more than
        that where its family is known (`LastPosition`). `watch`: keep the raw streams. `places` [T]: position
        numbers, instead of those that the family counts by itself.
        """
        positions: dict[str, Tensor] = {}
        if places is not None:
            positions["position_ids"] = places.expand(embeds.shape[0], -1)
        elif count_positions or self.counts_positions:
            positions["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        entry: list[Tensor] = []
        streams: list[Tensor] = []
        with (
            self._only(blocks),
            self._last(last_only and not self.training),
            self._hooks(watch, entry, streams),
        ):
            out = self.backbone(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **positions)
        final = out.last_hidden_state
        return BodyRun(entry[0] if entry else None, tuple(streams), final[:, -1:] if last_only else final)

    @contextmanager
    def _hooks(self, watch: bool, entry: list[Tensor], streams: list[Tensor]) -> Iterator[None]:
        """Record raw streams and apply dropout to each block's update."""
        drop = self.dropout if self.training else 0.0
        if not watch and not drop:
            yield
            return

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry.append(_stream_in(args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            if drop:
                inward = _stream_in(args, kwargs)
                stream = inward + functional.dropout(stream - inward, drop)
            streams.append(stream)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        blocks = self.blocks
        handles = [block.register_forward_hook(after, with_kwargs=True) for block in blocks]
        handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _last(self, wanted: bool) -> Iterator[None]:
        """Stand a `LastPosition` in for the last block for the length of a call."""
        blocks = self.blocks
        block = blocks[-1]
        if not wanted or not LastPosition.knows(block):
            yield
            return
        blocks[-1] = LastPosition(block)
        try:
            yield
        finally:
            blocks[-1] = block

    @contextmanager
    def _only(self, indices: Sequence[int] | None) -> Iterator[None]:
        """Run with a selection of blocks; list-valued config entries are sliced alike, since forwards read
        them.
        """
        if indices is None:
            yield
            return
        owner, name = self._find_blocks()
        everything, config = getattr(owner, name), self.backbone.config
        before = {key: getattr(config, key) for key in ("num_hidden_layers", *_per_layer_keys(config))}
        try:
            setattr(owner, name, nn.ModuleList([everything[i] for i in indices]))
            for key, value in _cut(before, indices).items():
                setattr(config, key, value)
            yield
        finally:
            setattr(owner, name, everything)
            for key, value in before.items():
                setattr(config, key, value)

    def costs(self) -> BodyCost | None:
        """What a pass that reads the last position costs; None: the family is not known."""
        return body_cost(self.backbone, self.blocks)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these blocks: cut the list, re-index `layer_idx`, and give all modules a mended
        config.
        """
        owner, name = self._find_blocks()
        everything = getattr(owner, name)
        config = copy.deepcopy(self.backbone.config)
        for key, value in _cut(
            {key: getattr(config, key) for key in ("num_hidden_layers", *_per_layer_keys(config))}, indices
        ).items():
            setattr(config, key, value)
        setattr(owner, name, nn.ModuleList([everything[i] for i in indices]))
        for new_index, block in enumerate(getattr(owner, name)):
            for module in block.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = new_index
        for module in self.backbone.modules():  # attention modules hold a reference of their own
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                setattr(module, "config", config)  # noqa: B010 - modules type their attributes as tensors


def _stream_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    stream = args[0] if args else kwargs["hidden_states"]
    assert isinstance(stream, Tensor)
    return stream


def _per_layer_keys(config: PreTrainedConfig) -> list[str]:
    """Config entries that hold one value per block (`layer_types`, ...); `architectures` only looks like
    one.
    """
    depth = config.num_hidden_layers
    return [
        key
        for key, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == depth and key != "architectures"
    ]


def _cut(entries: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    return {
        key: len(indices) if key == "num_hidden_layers" else type(value)(value[i] for i in indices)
        for key, value in entries.items()
    }


def drop_word_embeddings(backbone: PreTrainedModel) -> int:
    """Replace the word embeddings, which nothing reads, by a single row; returns the parameters dropped."""
    old = backbone.get_input_embeddings()
    assert isinstance(old, nn.Embedding)
    row = nn.Embedding(1, old.weight.shape[1], dtype=old.weight.dtype)
    nn.init.zeros_(row.weight)
    backbone.set_input_embeddings(row.requires_grad_(False))
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(backbone.config, key, 0)
    backbone.config.vocab_size = 1
    return old.weight.numel() - row.weight.numel()
