"""Which blocks to keep: importance scores from raw residual streams, and the choices made from them.

Blocks are numbered 0..L-1; the stream h^(l) enters block l, h^(L) leaves the last block *before* the final
norm (a library's last hidden state instead would score the last block against a normalised tensor).
All functions are deterministic and return kept indices in ascending order.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from recommender.errors import StageError


class Streams(NamedTuple):
    """The raw residual streams of one batch."""

    states: Sequence[Tensor]  # h^(0) .. h^(L), each [B, T, H]
    real: Tensor  # bool [B, T]: positions that hold a real item


class Removal(NamedTuple):
    """One step of the greedy search."""

    block: int
    loss: float  # of the model without this block and all that were removed before


def row_cosines(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of each row, [N, H] x [N, H] -> float32 [N] in [-1, 1].

    A zero vector has no direction: two zero vectors count as equal (1), one alone as orthogonal (0).
    """
    a, b = _directions(before), _directions(after)
    both_zero = ~(a.any(dim=-1) | b.any(dim=-1))
    return ((a * b).sum(-1) + both_zero).clamp(-1.0, 1.0)


def row_angles(before: Tensor, after: Tensor) -> Tensor:
    """Angle of each row over pi, float32 [N] in [0, 1]: 0 same direction, 0.5 orthogonal, 1 opposite.

    Kahan's 2 atan2(|a - b|, |a + b|) of the unit vectors; arccos(cos) has no digits left where blocks matter
    least (it cannot tell 0 from 1e-4 in float32). Zero vectors as in `row_cosines`.
    """
    a, b = _directions(before), _directions(after)
    return 2 / math.pi * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def last_real(real: Tensor) -> Tensor:
    """Mask [B, T] -> the same mask with only the last real position of each row left."""
    later = real.flip(1).cumsum(1).flip(1)
    return real & (later == 1)


def block_influence(batches: Iterable[Streams]) -> list[float]:
    """ShortGPT's block influence, BI_l = 1 - mean cos(h^(l), h^(l+1)) over all real positions; [L] in [0, 2].

    0 means that a block only rescales its input. Every real position weighs the same, so neither padding nor
    the batch size matters. Source: Men et al. 2024 (arXiv 2403.03853). Raises StageError on NaN or infinity.
    """
    total: Tensor | None = None
    count = 0
    for states, real in batches:
        rows = _gather(states, real)
        cosines = torch.stack([row_cosines(a, b) for a, b in pairwise(rows)])
        sums = cosines.double().sum(1)
        total = sums if total is None else total + sums
        count += rows[0].shape[0]
    return [1.0 - value for value in _means(total, count)]


def angular_distances(batches: Iterable[Streams], cut: int) -> list[float]:
    """d(l, cut) = mean arccos(cos(h^(l), h^(l+cut))) / pi at each row's last real position, l = 0..L-cut.

    Each value in [0, 1] speaks for removing the blocks l..l+cut-1. Source: Gromov et al. 2024 (arXiv
    2403.17887), section 3. Raises ValueError when nothing or everything would be cut, StageError on NaN.
    """
    total: Tensor | None = None
    count = 0
    for states, real in batches:
        layers = len(states) - 1
        if not 1 <= cut < layers:
            raise ValueError(f"cannot cut {cut} of {layers} blocks")
        rows = _gather(states, last_real(real))
        angles = torch.stack([row_angles(rows[at], rows[at + cut]) for at in range(layers - cut + 1)])
        sums = angles.double().sum(1)
        total = sums if total is None else total + sums
        count += rows[0].shape[0]
    return _means(total, count)


def every_cut(batches: Iterable[Streams]) -> dict[int, list[float]]:
    """`angular_distances` of every cut from one pass: {length: [distance of the cut at l = 0..L-length]}.

    Every length from 1 to L-1, so L(L+1)/2 - 1 cuts; a body of one block has none. Adding a stretch to a cut
    never adds more than the stretch's own distance (the angle is a metric). Raises as `angular_distances`.
    """
    total: Tensor | None = None
    count = layers = 0
    for states, real in batches:
        layers = len(states) - 1
        rows = _gather(states, last_real(real))
        sums = [row_angles(rows[at], rows[at + cut]).double().sum() for at, cut in _cuts(layers)]
        batch = torch.stack(sums) if sums else torch.zeros(0)
        total = batch if total is None else total + batch
        count += rows[0].shape[0]
    found: dict[int, list[float]] = {cut: [] for cut in range(1, layers)}
    for (_, cut), distance in zip(_cuts(layers), _means(total, count), strict=True):
        found[cut].append(distance)
    return found


def keep_first(layers: int, keep: int) -> list[int]:
    """The first `keep` blocks (what SLMRec does)."""
    _check(layers, keep)
    return list(range(keep))


def keep_uniform(layers: int, keep: int) -> list[int]:
    """`keep` blocks spread evenly from the first to the last; the first one alone when keep is 1."""
    _check(layers, keep)
    if keep == 1:
        return [0]
    gaps = keep - 1
    return [(number * (layers - 1) + gaps // 2) // gaps for number in range(keep)]


def keep_influential(influence: Sequence[float], keep: int) -> list[int]:
    """All but the blocks of least influence; of equal ones the deeper goes first."""
    _check(len(influence), keep)
    ranked = sorted(range(len(influence)), key=lambda block: (-influence[block], block))
    return sorted(ranked[:keep])


def keep_around_cut(distances: Sequence[float], cut: int) -> list[int]:
    """All but the contiguous `cut` blocks whose removal turns the stream least; of equals the deepest goes.

    `distances` as given by `angular_distances`: L - cut + 1 candidates.
    """
    layers = len(distances) + cut - 1
    _check(layers, layers - cut)
    start = min(range(len(distances)), key=lambda at: (distances[at], -at))
    return [block for block in range(layers) if not start <= block < start + cut]


def greedy_removals(
    layers: int,
    keep: int,
    evaluate: Callable[[Sequence[int]], float],
    *,
    barriers: tuple[int, int] = (0, 0),
) -> list[Removal]:
    """Remove one block after the other, each time the one whose loss is least without it; earliest first.

    `evaluate(kept)` gives the loss of the model with only these blocks. `barriers`: how many of the first and
    of the last blocks still standing may not go (SLEB protects one each; shallow recommenders none). Of equal
    losses the deepest block goes. Source: Song et al. 2024 (SLEB, arXiv 2402.09025) with validation
    cross-entropy for perplexity. Raises ValueError when the barriers protect too much, StageError on NaN.
    """
    _check(layers, keep)
    if keep < layers and sum(barriers) >= keep + 1:
        raise ValueError(f"barriers {barriers} leave nothing to remove on the way to {keep} blocks")
    alive = list(range(layers))
    removals: list[Removal] = []
    while len(alive) > keep:
        candidates = alive[barriers[0] : len(alive) - barriers[1]]
        losses = {block: evaluate([other for other in alive if other != block]) for block in candidates}
        broken = [block for block, loss in losses.items() if math.isnan(loss)]
        if broken:
            raise StageError(f"the validation loss without block {broken[0]} is NaN")
        block = min(candidates, key=lambda candidate: (losses[candidate], -candidate))
        removals.append(Removal(block, losses[block]))
        alive.remove(block)
    return removals


def keep_greedy(
    layers: int,
    keep: int,
    evaluate: Callable[[Sequence[int]], float],
    *,
    barriers: tuple[int, int] = (0, 0),
) -> list[int]:
    """The blocks that `greedy_removals` leaves."""
    removed = {removal.block for removal in greedy_removals(layers, keep, evaluate, barriers=barriers)}
    return [block for block in range(layers) if block not in removed]


def _cuts(layers: int) -> list[tuple[int, int]]:
    """(first block, length) of every contiguous cut that leaves something."""
    return [(at, cut) for cut in range(1, layers) for at in range(layers - cut + 1)]


def _check(layers: int, keep: int) -> None:
    if not 1 <= keep <= layers:
        raise ValueError(f"cannot keep {keep} of {layers} blocks")


def _gather(states: Sequence[Tensor], real: Tensor) -> list[Tensor]:
    """Real positions only, [N, H] each; refuses NaN and infinity, which would hide in a mean."""
    rows = [state[real] for state in states]
    for number, row in enumerate(rows):
        if not torch.isfinite(row).all():
            place = "entering the first block" if number == 0 else f"after block {number - 1}"
            raise StageError(f"the hidden states {place} hold NaN or infinity, so blocks cannot be compared")
    return rows


def _directions(rows: Tensor) -> Tensor:
    """Unit vectors in float32; the largest entry is divided out first, so no square over- or underflows."""
    exact = rows.float()
    largest = exact.abs().amax(dim=-1, keepdim=True)
    scaled = exact / torch.where(largest == 0, 1.0, largest)
    norms: Tensor = scaled.norm(dim=-1, keepdim=True)
    return scaled / norms.clamp_min(0.5)  # only a zero vector has less than 1


def _means(total: Tensor | None, count: int) -> list[float]:
    if total is None or count == 0:
        raise ValueError("no real position to measure on")
    means: list[float] = (total / count).tolist()
    return means
