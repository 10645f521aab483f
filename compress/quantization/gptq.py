"""GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323): each column's rounding error is fed back.

min ||X W^T - X Q^T|| over Q on a grid, column by column: what rounding a column does to the outputs is made
up for by the columns that are still free, as far as the inputs X let them.
"""

import torch
from torch import Tensor

from compress.quantization.grid import expanded, to_numbers
from recommender.errors import StageError
from recommender.quantization_scheme import Levels

DAMPING = 0.01


def gptq(
    matrix: Tensor,
    hessian: Tensor,
    scales: Tensor,
    levels: Levels,
    group: int | None = None,
    *,
    damping: float = DAMPING,
) -> Tensor:
    """The matrix [out, in] on the grid of its scales [out, groups], float32.

    `hessian` [in, in]: 2/n sum x x^T of its inputs. Deviations from the authors' code: columns go in the
    order of falling diagonal with scales that were set before (its `actorder` with `static_groups`); a column
    whose input is always 0 is rounded to nearest, not set to 0, as calibration does not see every input; a
    row that ends worse than by rounding to nearest is rounded to nearest, so that no row ever is worse.
    Computes in float64 and takes three matrices [in, in]. Raises StageError where the Hessian is not finite.
    """
    if not torch.isfinite(hessian).all():
        raise StageError("the Hessian is not finite", where="quantize", fix="train again")
    weight, target = matrix.double(), hessian.double()
    steps = expanded(scales, group, matrix.shape[1]).double().expand_as(weight)
    order = target.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(target[order][:, order], damping)
    left, steps_in_order = weight[:, order].clone(), steps[:, order]
    numbers = torch.empty_like(left)
    for column in range(left.shape[1]):
        step = steps_in_order[:, column]
        numbers[:, column] = (left[:, column] / step).round().clamp(levels.low, levels.high)
        error = (left[:, column] - numbers[:, column] * step) / factor[column, column]
        left[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    fed_back = torch.empty_like(numbers)
    fed_back[:, order] = numbers
    nearest = to_numbers(matrix, scales, levels, group).double()
    better = row_errors(weight - fed_back * steps, target) < row_errors(weight - nearest * steps, target)
    chosen = torch.where(better[:, None], fed_back, nearest).float()
    return chosen * expanded(scales, group, matrix.shape[1])


def row_errors(difference: Tensor, hessian: Tensor) -> Tensor:
    """[out]: twice the mean squared error of each output, d H d^T."""
    return ((difference @ hessian) * difference).sum(1)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    dead = diagonal == 0
    alive = diagonal[~dead]
    diagonal += damping * (alive.mean() if len(alive) else 1.0)
    diagonal[dead] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
