"""Which weights of a matrix become zero: magnitude, Wanda and SparseGPT, unstructured or 2:4.

Matrices are W [out, in], as `torch.nn.Linear` keeps them; X [tokens, in] is what they are multiplied with. A
weight that is zero already counts as the first one to go, whatever its score, so that pruning a sparse
matrix again keeps its zeros, and a second time with the same numbers changes nothing. Counts are exact, where
the reference codes compare with a threshold and ties prune more than was asked for. Nothing is changed in
place; results are a function of the arguments.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Method = Literal["magnitude", "wanda", "sparsegpt"]
Pattern = Literal["unstructured", "2:4"]

GROUP, PRUNED = 4, 2
"""2:4: in each aligned group of 4 inputs of a row, 2 weights become zero."""

TILE = 128
"""SparseGPT chooses weights, and hands errors on, in so many columns at a time."""

DAMPING = 0.01
"""SparseGPT's addition to the diagonal of the Hessian, as a share of its mean."""


class Pruned(NamedTuple):
    """A pruned matrix."""

    weight: Tensor  # [out, in], type of the given weight; zero where not kept
    kept: Tensor  # bool [out, in]


def pruned_count(size: int, sparsity: float) -> int:
    """How many of `size` weights become zero: the share, rounded down.

    Raises ValueError for a share outside of [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is not between 0 and 1")
    return math.floor(size * sparsity + 1e-9)  # 0.29 x 100 is 28.999999999999996


def magnitude(
    weight: Tensor, sparsity: float, *, pattern: Pattern = "unstructured", per_row: bool = False
) -> Pruned:
    """Remove the weights of least absolute value: of the whole matrix, or of each row.

    Raises ValueError for a sparsity outside of [0, 1] (with 2:4: another than 0.5), and for 2:4 on a number
    of inputs that 4 does not divide.
    """
    scores = weight.abs().float()
    return _without(weight, _lowest(weight, scores, sparsity, pattern, per_row=per_row))


def wanda(weight: Tensor, norms: Tensor, sparsity: float, *, pattern: Pattern = "unstructured") -> Pruned:
    """Remove, in each row, the weights of least |W_ij| ||X_j|| (Sun et al., arXiv 2306.11695).

    `norms` [in] are those of the columns of X; a common factor does not matter. The weights that stay are
    as they were. Raises ValueError as `magnitude` does, and for norms of another length.
    """
    _check_length(norms, weight, "norms")
    scores = weight.abs().float() * norms.float()
    return _without(weight, _lowest(weight, scores, sparsity, pattern, per_row=True))


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float,
    *,
    pattern: Pattern = "unstructured",
    tile: int = TILE,
    damping: float = DAMPING,
) -> Pruned:
    """Remove weights and let those to their right make up for it (Frantar & Alistarh, arXiv 2301.00774).

    `hessian` [in, in] is X^T X; a common factor does not matter. Within a tile of columns the weights of
    least w^2 / U_jj^2 go, over all rows together (2:4: in each group of a row, when its first column is
    reached), U being the upper Cholesky factor of the inverse damped Hessian. Inputs that are always zero
    lose their weights. Computed in float32, the factor in float64.

    Deviation from the authors' code: exact counts, and weights that were zero stay zero.

    Raises ValueError as `magnitude` does, for a Hessian of another size, and for a tile that 4 does not
    divide.
    """
    rows, inputs = weight.shape
    if hessian.shape != (inputs, inputs):
        raise ValueError(f"the Hessian is {list(hessian.shape)}, the matrix has {inputs} inputs")
    if tile % GROUP:
        raise ValueError(f"a tile of {tile} columns cuts a group of {GROUP}")
    pruned_count(rows * inputs, sparsity)
    _check_pattern(inputs, sparsity, pattern)
    dead = hessian.diagonal() == 0
    factor = inverse_factor(_of_size_1(hessian), damping=damping).float()
    held = (weight == 0) | dead
    work = weight.float().masked_fill(dead, 0)
    kept = torch.ones_like(held)
    for first in range(0, inputs, tile):
        here = slice(first, min(first + tile, inputs))
        gone, errors = _prune_tile(work[:, here], factor[here, here], held[:, here], sparsity, pattern)
        work[:, here.stop :] -= errors @ factor[here, here.stop :]
        kept[:, here] = ~gone
    return Pruned(work.to(weight.dtype).masked_fill(~kept, 0), kept)


def _prune_tile(
    columns: Tensor, upper: Tensor, held: Tensor, sparsity: float, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Prune the columns [out, n] in place; (what goes: bool [out, n], errors for the columns to come)."""
    gone, errors = held.clone(), torch.zeros_like(columns)
    if pattern == "unstructured":
        gone |= _first_to_go(_saliency(columns, upper, held).flatten(), sparsity).view_as(gone)
    for j in range(columns.shape[1]):
        if pattern == "2:4" and j % GROUP == 0:
            group = slice(j, j + GROUP)
            scores = _saliency(columns[:, group], upper[group, group], held[:, group])
            gone[:, group] |= _smallest(scores, PRUNED)
        error = columns[:, j].masked_fill(~gone[:, j], 0) / upper[j, j]
        columns[:, j:] -= error.unsqueeze(1) * upper[j, j:]
        columns[:, j].masked_fill_(gone[:, j], 0)
        errors[:, j] = error
    return gone, errors


def inverse_factor(hessian: Tensor, *, damping: float = DAMPING) -> Tensor:
    """Upper triangular U [n, n] in float64 with U^T U = (H + damping x mean(diag H) x I)^-1.

    The mean is that of the inputs that are ever used; where H_jj is 0 it counts as that mean. (The published
    code takes 1 for it, and into the mean, which drowns the others where inputs are small.) Raises ValueError
    for a Hessian that is not finite, or is not positive definite even so.
    """
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_tensor(1.0)
    diagonal.masked_fill_(dead, float(mean))
    diagonal += damping * mean
    if not damped.isfinite().all():
        raise ValueError("the Hessian is not finite")
    lower, wrong = torch.linalg.cholesky_ex(damped)
    if int(wrong):
        raise ValueError(f"the Hessian is not positive definite with a damping of {damping}")
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor


def _of_size_1(hessian: Tensor) -> Tensor:
    """The Hessian in float64 over a power of four near its mean diagonal: float32 holds its factor then.

    A power of four makes one of two in the factor, which changes no digit of what is pruned by it.
    """
    mean = float(hessian.diagonal().double().mean())
    exact = 4.0 ** round(math.log(mean, 4)) if 0 < mean < math.inf else 1.0
    return hessian.double() / exact


def _lowest(weight: Tensor, scores: Tensor, sparsity: float, pattern: Pattern, *, per_row: bool) -> Tensor:
    """bool [out, in]: the weights that go, zeros first, then by score."""
    _check_pattern(weight.shape[1], sparsity, pattern)
    scores = scores.masked_fill(weight == 0, -1.0)
    if pattern == "2:4":
        return _smallest(scores.reshape(-1, GROUP), PRUNED).view_as(scores)
    if per_row:
        return _first_to_go(scores, sparsity)
    return _first_to_go(scores.flatten(), sparsity).view_as(scores)


def _saliency(columns: Tensor, upper: Tensor, held: Tensor) -> Tensor:
    """SparseGPT's scores [out, n]; what is zero already comes first."""
    return (columns / upper.diagonal()).square().masked_fill(held, -1.0)


def _first_to_go(scores: Tensor, sparsity: float) -> Tensor:
    """bool, the shape of `scores`: the share with the smallest scores along the last dimension."""
    return _smallest(scores, pruned_count(scores.shape[-1], sparsity))


def _smallest(scores: Tensor, count: int) -> Tensor:
    """bool: the `count` smallest along the last dimension; of equal ones those that come first."""
    order = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def _without(weight: Tensor, gone: Tensor) -> Pruned:
    return Pruned(weight.masked_fill(gone, 0), ~gone)


def _check_length(values: Tensor, weight: Tensor, what: str) -> None:
    if values.shape != weight.shape[1:]:
        raise ValueError(f"{what} {list(values.shape)} for a matrix of {weight.shape[1]} inputs")


def _check_pattern(inputs: int, sparsity: float, pattern: Pattern) -> None:
    if pattern == "2:4" and inputs % GROUP:
        raise ValueError(f"2:4 needs a number of inputs that 4 divides, not {inputs}")
    if pattern == "2:4" and sparsity != PRUNED / GROUP:
        raise ValueError(f"2:4 prunes half of the weights, not {sparsity:g}")
