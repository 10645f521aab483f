"""Minitron's importance of neurons, heads and channels: how large they are on training histories."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.calibration import Calibration, device_of
from compress.narrowing.layout import Layout, Structure, Widths
from compress.narrowing.scores import MeanMagnitude, head_magnitudes
from recommender.models.linears import Linear, body_linears, watched
from recommender.models.llm import LlmRecommender


class Importance(NamedTuple):
    """Scores of all that can be removed, float64; the scale is that of the method."""

    hidden: Tensor  # [hidden]
    blocks: Sequence[Mapping[Structure, Tensor]]  # ffn [ffn], heads [heads], kv [kv heads]


def activation_importance(
    model: LlmRecommender, layout: Layout, widths: Widths, calibration: Calibration
) -> Importance:
    """Minitron's scores from one pass over the histories.

    A neuron: what enters the way down. A head: what enters the way out of attention, L2 over its channels. A
    channel of the stream: what leaves the norms, the final one too, summed. Keys and values have no score of
    their own. Read where items are read, prompts and padding left out (as block influence is).
    """
    watch = _Watch(model, layout)
    with torch.inference_mode(), watch.open():
        for history, _ in calibration.batches(device_of(model)):
            watch.real = item_positions(model, history.items)
            model.hidden(history)
    return watch.importance(widths)


class _Watch:
    """Accumulates what passes through a body."""

    def __init__(self, model: LlmRecommender, layout: Layout) -> None:
        self.model = model
        self.real = torch.empty(0)  # bool [B, T] of the batch that runs
        self.linears = {
            name: linear
            for name, linear in body_linears(model.body).items()
            if name.partition(".")[2] in (layout.reading("ffn"), layout.reading("heads"))
        }
        self.ffn = layout.reading("ffn")
        blocks = list(model.body.blocks)
        self.norms = [block.get_submodule(name) for block in blocks for name in layout.norms]
        self.norms.append(_final_norm(model))
        self.inputs = {name: MeanMagnitude() for name in self.linears}
        self.outputs = [MeanMagnitude() for _ in self.norms]

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, every pass is added; set `real` before each."""
        handles = [
            norm.register_forward_hook(self._hook(seen))
            for norm, seen in zip(self.norms, self.outputs, strict=True)
        ]
        try:
            with watched(self.linears, self._see):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, linear: Linear, values: Tensor) -> None:
        self._add(self.inputs[linear.name], values)

    def _hook(self, seen: MeanMagnitude) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            self._add(seen, output)

        return hook

    def _add(self, seen: MeanMagnitude, values: Tensor) -> None:
        seen.add(values.view(*self.real.shape, -1), self.real)  # OPT flattens batch and time

    def importance(self, widths: Widths) -> Importance:
        """What was seen, as scores."""
        blocks: list[dict[Structure, Tensor]] = [{} for _ in self.model.body.blocks]
        for name, linear in self.linears.items():
            scores, block = self.inputs[name].scores().cpu(), blocks[linear.block]
            if name.partition(".")[2] == self.ffn:
                block["ffn"] = scores
            else:
                block["heads"] = head_magnitudes(scores, widths.head_dim)
                block["kv"] = torch.zeros(widths.kv_heads, dtype=torch.float64)
        hidden = torch.stack([seen.scores() for seen in self.outputs]).sum(dim=0).cpu()
        return Importance(hidden, blocks)


def _final_norm(model: LlmRecommender) -> nn.Module:
    """The norm behind the blocks: the one module outside of them that is no embedding but has weights."""
    inside = set(model.body.blocks.modules())
    (found,) = [
        module
        for module in model.body.backbone.modules()
        if module not in inside
        and not isinstance(module, nn.Embedding)
        and any(True for _ in module.parameters(recurse=False))
    ]
    return found


def item_positions(model: LlmRecommender, items: Tensor) -> Tensor:
    """Bool [B, T]: where the items of rows [B, L] are read, padding left out (see `Hidden.at`)."""
    before, behind = len(model.prefix), len(model.suffix)
    real = items != 0
    found = real.new_zeros(len(items), before + items.shape[1] + behind)
    found[:, before : before + items.shape[1]] = real
    if behind:  # the newest item is read at the end of the prompt
        found[:, -1] = real[:, -1]
        found[:, before + items.shape[1] - 1] = False
    return found
