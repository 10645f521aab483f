"""The canonical graph as a compiler takes it: ties by ascending row, and matrices in bfloat16 where asked."""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from export.graph import ScoringGraph
from recommender.models.interface import History, SequentialRecommender

LOWEST = -1e4
"""Of an additive mask: bfloat16 rounds the lowest float32 to -inf, and then padded queries have no key."""
LOW = (1 << 32) - 1
MATRICES = (functional.linear, torch.addmm)
CONTRACTIONS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__)
ANGLES = (torch.cos, torch.sin, torch.Tensor.cos, torch.Tensor.sin)
IN_FLOAT = (
    functional.layer_norm,
    functional.rms_norm,
    functional.softmax,
    torch.softmax,
    torch.Tensor.softmax,
)


class CompiledGraph(nn.Module):
    """(items int64 [B, L], seen int64 [B, S]) -> (top_items int64 [B, k], scores float32 [B, k]).

    As `ScoringGraph`, with equal scores in ascending row order. `half`: matrix products in bfloat16, and
    attention with `half_attention`; all else (norms, the stream of residuals, angles, softmax, scores and the
    item table) in float32; the model is copied for it.
    """

    def __init__(
        self, model: SequentialRecommender, k: int, *, half: bool = False, half_attention: bool = True
    ) -> None:
        super().__init__()
        self.scoring, self.rounds, self.half_attention = ScoringGraph(model, k), half, half_attention
        if half:
            self.scoring.model = with_half_matrices(model)

    def forward(self, items: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The k best rows per history and their scores, best first."""
        with AnglesOnce(), HalfProducts(self.half_attention) if self.rounds else nullcontext():
            user = self.scoring.model.user_vector(History(items))
        return ordered_top_k(self.scoring.scores(user, seen), self.scoring.k)


def ordered_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(rows int64 [B, k], scores float32 [B, k]) of scores float32 [B, n], best first, ties by ascending row.

    torch leaves the order of equal scores open, so what is sorted are whole numbers that are never equal: the
    score above, the row below. Where there are many rows, only the k blocks with the largest maxima are
    sorted, the lower one of equal ones: whatever stands in another block is behind the best of each of them.
    NaN stands first, or last with its sign set.
    """
    batch, count = scores.shape
    size = block_size(count, k)
    blocks = -(-count // size)
    if blocks < 4 * k:
        rows = torch.arange(count, device=scores.device).expand(batch, -1)
        return _best(scores, rows, k)
    filled = functional.pad(scores, (0, blocks * size - count), value=float("-inf"))
    filled = filled.view(batch, blocks, size)
    highest = _keys(filled.amax(dim=2), torch.arange(blocks, device=scores.device))
    chosen = highest.topk(k, dim=1).indices.unsqueeze(2)  # [B, k, 1]
    within = torch.arange(size, device=scores.device)
    taken = filled.gather(1, chosen.expand(-1, -1, size))
    return _best(taken.flatten(1), (chosen * size + within).flatten(1), k)


def block_size(count: int, k: int) -> int:
    """A power of two near the square root of count / k: then blocks and what is left of them are few."""
    return 1 << max(3, round(math.log2(math.sqrt(count / k))))


def _best(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores [B, n] that belong to rows [B, n]."""
    keys, places = _keys(scores, rows).topk(k, dim=1)
    return LOW - (keys & LOW), scores.gather(1, places)


def _keys(scores: Tensor, rows: Tensor) -> Tensor:
    """int64: larger for a larger score, and at equal ones for a smaller row."""
    bits = torch.where(scores == 0, torch.zeros_like(scores), scores).view(torch.int32)  # -0 equals 0
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return ascending.long() * (LOW + 1) + (LOW - rows)


def with_half_matrices(model: SequentialRecommender) -> SequentialRecommender:
    """A copy whose matrices are stored in bfloat16, for calls within `HalfProducts`."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | Conv1D) and isinstance(weight, nn.Parameter):
            module.weight = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
    return rounded


class AnglesOnce(TorchFunctionMode):
    """While open, sines and cosines are written to memory.

    The compiler (inductor 2.13) takes them for cheap and computes them anew for every number that an angle
    turns: each block, head and user. It does not look into a product, and one with the identity is exact.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every one of its functions."""
        found = func(*args, **(kwargs or {}))
        if func in ANGLES and found.dtype == torch.float32 and isinstance(found.shape[-1], int):
            return found @ torch.eye(found.shape[-1], device=found.device)
        return found


class HalfProducts(TorchFunctionMode):
    """While open, matrix products take bfloat16, attention too unless told otherwise; norms and softmax take
    float32.

    What a product adds up, it adds up in float32, and attention has its softmax there, as kernels do. A
    product over one number (angles of rotary embeddings) is none.
    """

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every one of its functions."""
        named = dict(kwargs or {})
        if func in MATRICES or (func in CONTRACTIONS and not _over_one(args[0])):
            return func(*map(_half, args), **{name: _half(value) for name, value in named.items()})
        if func is functional.scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else named.pop("attn_mask", None)
            if self.attention:
                taken = [*map(_half, args[:3]), _half(_bounded(mask))]
            else:
                taken = [*map(_float, args[:3]), mask]
            return func(*taken, *args[4:], **named)
        if func in IN_FLOAT:
            args = tuple(map(_float, args))
        return func(*args, **named)


def _over_one(left: Tensor) -> bool:
    """Whether a product contracts over a single number, for sure."""
    width = left.shape[-1]
    return isinstance(width, int) and width == 1


def _half(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.bfloat16) if floating else value


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _bounded(mask: Any) -> Any:
    floating = isinstance(mask, Tensor) and mask.is_floating_point()
    return mask.clamp(min=LOWEST) if floating else mask
