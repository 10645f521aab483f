"""GPTQ against brute force on small matrices, and never worse than rounding to nearest."""

import itertools

import pytest
import torch
from torch import Tensor

from compress.quantization.gptq import gptq, row_errors
from compress.quantization.grid import on_grid, scales_of, to_numbers
from recommender.errors import StageError
from recommender.quantization_scheme import INT4, INT8, Levels

COARSE = Levels(-2, 1)


def inputs(tokens: int, width: int, seed: int) -> Tensor:
    """Correlated: a few hidden causes and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, max(2, width // 4), generator=generator)
    mixing = torch.randn(causes.shape[1], width, generator=generator)
    return causes @ mixing + 0.3 * torch.randn(tokens, width, generator=generator)


def hessian_of(x: Tensor) -> Tensor:
    return 2.0 / len(x) * (x.T @ x).double()


def weights(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(100 + seed))


def error(matrix: Tensor, other: Tensor, x: Tensor) -> Tensor:
    return (x.double() @ (matrix - other).double().T).square().sum()


def refitted(matrix: Tensor, hessian: Tensor, scales: Tensor, levels: Levels, damping: float) -> Tensor:
    """Brute force: after each column is rounded, the free ones are fitted anew by least squares.

    The damped quadratic (w - q) H (w - q)^T is minimised over the free columns with all rounded ones fixed
    where they are; no factor is ever updated.
    """
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    target, result = matrix.double(), matrix.double().clone()
    steps = scales.double()
    for place, column in enumerate(order):
        done, free = order[: place + 1], order[place + 1 :]
        numbers = (result[:, column] / steps[:, 0]).round().clamp(levels.low, levels.high)
        result[:, column] = numbers * steps[:, 0]
        if free:
            made_up = (target[:, done] - result[:, done]) @ damped[done][:, free]
            result[:, free] = target[:, free] + torch.linalg.solve(damped[free][:, free], made_up.T).T
    return result.float()


@pytest.mark.parametrize("seed", range(8))
def test_feeding_errors_back_is_fitting_the_free_columns_anew(seed: int) -> None:
    matrix, x = weights(6, 7, seed), inputs(200, 7, seed)
    hessian, scales = hessian_of(x), scales_of(weights(6, 7, seed), INT4)
    found, wanted = gptq(matrix, hessian, scales, INT4), refitted(matrix, hessian, scales, INT4, 0.01)
    nearest = on_grid(matrix, scales, INT4)
    for row in range(len(matrix)):  # a row that ends worse than by rounding is rounded
        own = slice(row, row + 1)
        fed_back = error(matrix[own], wanted[own], x) < error(matrix[own], nearest[own], x)
        assert torch.allclose(found[row], (wanted if fed_back else nearest)[row], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_it_lies_between_rounding_and_the_best_of_all_grid_points(seed: int) -> None:
    matrix, x = weights(1, 5, seed), inputs(100, 5, seed)
    scales = scales_of(matrix, COARSE)
    every = itertools.product(range(COARSE.low, COARSE.high + 1), repeat=5)
    best = min(error(matrix, torch.tensor([point]) * scales, x) for point in every)
    found = error(matrix, gptq(matrix, hessian_of(x), scales, COARSE), x)
    assert best * (1 - 1e-9) <= found <= error(matrix, on_grid(matrix, scales, COARSE), x)


def test_over_many_draws_it_comes_closer_to_the_best_than_rounding_does() -> None:
    lost = {"gptq": 0.0, "nearest": 0.0, "best": 0.0}
    for seed in range(12):
        matrix, x = weights(1, 5, seed), inputs(100, 5, seed)
        scales = scales_of(matrix, COARSE)
        every = itertools.product(range(COARSE.low, COARSE.high + 1), repeat=5)
        lost["best"] += float(min(error(matrix, torch.tensor([point]) * scales, x) for point in every))
        lost["gptq"] += float(error(matrix, gptq(matrix, hessian_of(x), scales, COARSE), x))
        lost["nearest"] += float(error(matrix, on_grid(matrix, scales, COARSE), x))
    assert lost["best"] < lost["gptq"] < 0.8 * lost["nearest"]


@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("levels", [INT4, INT8])
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_worse_than_rounded_to_nearest(levels: Levels, group: int | None, seed: int) -> None:
    matrix, x = weights(20, 40, seed), inputs(300, 40, seed)
    hessian, scales = hessian_of(x), scales_of(weights(20, 40, seed), levels, group)
    difference = (matrix - gptq(matrix, hessian, scales, levels, group)).double()
    nearest = (matrix - on_grid(matrix, scales, levels, group)).double()
    assert (row_errors(difference, hessian) <= row_errors(nearest, hessian) * (1 + 1e-6)).all()
    assert row_errors(difference, hessian).sum() < 0.7 * row_errors(nearest, hessian).sum()


def test_the_result_lies_on_the_grid_that_was_given() -> None:
    matrix, x = weights(12, 40, 0), inputs(300, 40, 0)
    scales = scales_of(matrix, INT4, 16)
    found = gptq(matrix, hessian_of(x), scales, INT4, 16)
    assert torch.equal(on_grid(found, scales, INT4, 16), found)
    assert not torch.equal(found, on_grid(matrix, scales, INT4, 16))


def test_inputs_that_do_not_correlate_leave_rounding_to_nearest() -> None:
    matrix = weights(10, 16, 1)
    scales = scales_of(matrix, INT4)
    hessian = torch.diag(torch.rand(16, dtype=torch.float64) + 0.1)
    assert torch.equal(gptq(matrix, hessian, scales, INT4), on_grid(matrix, scales, INT4))


def test_inputs_of_low_rank_and_dead_columns_give_finite_weights() -> None:
    matrix, x = weights(10, 32, 2), inputs(5, 32, 2)
    x[:, [3, 7]] = 0
    scales = scales_of(matrix, INT4)
    found = gptq(matrix, hessian_of(x), scales, INT4)
    assert torch.isfinite(found).all()
    assert torch.equal(found[:, [3, 7]], on_grid(matrix, scales, INT4)[:, [3, 7]])
    nothing = torch.zeros(32, 32, dtype=torch.float64)
    assert torch.equal(gptq(matrix, nothing, scales, INT4), on_grid(matrix, scales, INT4))


def test_the_order_of_the_columns_does_not_matter() -> None:
    matrix, x = weights(8, 12, 3), inputs(100, 12, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    scales = scales_of(matrix, INT4)
    plain = gptq(matrix, hessian_of(x), scales, INT4)
    permuted = gptq(matrix[:, order], hessian_of(x[:, order]), scales, INT4)
    assert torch.equal(
        to_numbers(permuted, scales, INT4), to_numbers(plain[:, order].contiguous(), scales, INT4)
    )


def test_inputs_with_nan_are_refused() -> None:
    with pytest.raises(StageError, match="not finite"):
        gptq(weights(2, 2, 0), torch.full((2, 2), float("nan")), torch.ones(2, 1), INT4)
