"""How much the members of a structure matter, and which of them stay: pure functions on tensors.

Activation scores are those of Minitron (arXiv 2407.14679, NVIDIA's Model-Optimizer), Taylor scores those of
LLM-Pruner (arXiv 2305.11627). Scores are float64; ties are broken by the lower index.
"""

import torch
from torch import Tensor


class MeanMagnitude:
    """sqrt(sum over sequences of (mean over real positions of |x|)^2), channel by channel.

    Sequences count alike whatever their length, padding does not count, and it does not matter how
    sequences are put into batches.
    """

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def add(self, values: Tensor, real: Tensor) -> None:
        """values [B, T, C], real bool [B, T]; a sequence without a real position adds nothing."""
        weight = real.to(torch.float64)
        magnitude = values.abs().to(torch.float64).masked_fill(~real.unsqueeze(-1), 0)
        means = magnitude.sum(dim=1) / weight.sum(dim=1).clamp(min=1).unsqueeze(-1)
        squares = means.square().sum(dim=0)
        self._squares = squares if self._squares is None else self._squares + squares

    def scores(self) -> Tensor:
        """[C]. Raises ValueError when nothing was added."""
        if self._squares is None:
            raise ValueError("no activation was seen")
        return self._squares.sqrt()


def head_magnitudes(channels: Tensor, head_dim: int) -> Tensor:
    """[heads * d] -> [heads]: the L2 norm over the channels of each head."""
    norms: Tensor = torch.linalg.vector_norm(channels.view(-1, head_dim), dim=1)
    return norms


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """LLM-Pruner's `param_first`: |w g|, element by element; the loss without w changes by that much."""
    return (weight.to(torch.float64) * gradient.to(torch.float64)).abs()


def second_order(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """LLM-Pruner's `param_second`: w^2 F, where F is the mean over examples of the squared gradient."""
    return weight.to(torch.float64).square() * squared_gradient.to(torch.float64)


def sum_along(salience: Tensor, axis: int) -> Tensor:
    """Sum over all axes but one: [.., n, ..] -> [n]."""
    others = [number for number in range(salience.ndim) if number != axis % salience.ndim]
    return salience.sum(dim=others) if others else salience


def keep_top(scores: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` highest scores, ascending."""
    ranked = torch.sort(scores, descending=True, stable=True).indices
    return torch.sort(ranked[:keep]).values


def keep_heads(heads: Tensor, groups: Tensor, *, keep_heads: int, keep_groups: int) -> tuple[Tensor, Tensor]:
    """(heads that stay, key/value heads that stay), ascending; every one of the latter keeps equally many.

    `heads` [n] scores of heads, `groups` [g] scores of what belongs to the key/value heads themselves; g
    divides n, and head i reads from group i // (n / g). A group's worth is its own score and those of the
    best heads that it can keep.
    """
    each = keep_heads // keep_groups
    table = heads.view(len(groups), -1)
    best = torch.sort(table, dim=1, descending=True, stable=True).indices[:, :each]
    worth = groups + table.gather(1, best).sum(dim=1)
    kept = keep_top(worth, keep_groups)
    inside = torch.sort(best[kept], dim=1).values + kept.unsqueeze(1) * table.shape[1]
    return inside.flatten(), kept


def share_kept(scores: Tensor, kept: Tensor) -> float:
    """The part of all scores that stays, 0 to 1."""
    total = float(scores.sum())
    return float(scores[kept].sum()) / total if total else 1.0
