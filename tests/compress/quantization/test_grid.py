"""Rounding to a grid: near, idempotent, exact about what lies on it."""

import pytest
import torch
from torch import Tensor

from compress.quantization.grid import expanded, on_grid, scales_of, to_numbers
from recommender.quantization_scheme import INT4, INT7, INT8, Levels, whole_numbers

CASES = [(INT8, None), (INT7, None), (INT4, None), (INT4, 16), (INT4, 32)]


def matrix(rows: int = 24, width: int = 72, seed: int = 0) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.logspace(-3, 1, rows)[:, None]


@pytest.mark.parametrize(("levels", "group"), CASES)
def test_rounding_again_changes_nothing(levels: Levels, group: int | None) -> None:
    scales = scales_of(matrix(), levels, group)
    once = on_grid(matrix(), scales, levels, group)
    assert torch.equal(on_grid(once, scales, levels, group), once)
    assert not torch.equal(once, matrix())


@pytest.mark.parametrize(("levels", "group"), CASES)
def test_no_entry_moves_by_more_than_half_a_step(levels: Levels, group: int | None) -> None:
    scales = scales_of(matrix(), levels, group)
    moved = (on_grid(matrix(), scales, levels, group) - matrix()).abs()
    assert (moved <= expanded(scales, group, 72) * 0.5001).all()


@pytest.mark.parametrize(("levels", "group"), CASES)
def test_the_whole_numbers_of_what_was_rounded_are_read_back_without_torch(
    levels: Levels, group: int | None
) -> None:
    scales = scales_of(matrix(), levels, group)
    rounded = on_grid(matrix(), scales, levels, group)
    numbers = whole_numbers(rounded.numpy(), scales.numpy(), levels, group, "w")
    assert torch.equal(torch.from_numpy(numbers).float(), to_numbers(matrix(), scales, levels, group))
    assert numbers.min() >= levels.low and numbers.max() <= levels.high


def test_each_row_or_group_uses_its_range_to_the_end() -> None:
    scales = scales_of(matrix(), INT8)
    assert (to_numbers(matrix(), scales, INT8).abs().amax(1) == 127).all()
    grouped = to_numbers(matrix(), scales_of(matrix(), INT4, 16), INT4, 16)
    for part in grouped.split(16, dim=1):
        assert ((part.amax(1) == 7) | (part.amin(1) == -8)).all()


def test_the_eighth_negative_step_is_used() -> None:
    assert scales_of(torch.tensor([[-8.0, 1.0]]), INT4).item() == 1.0
    assert scales_of(torch.tensor([[7.0, -1.0]]), INT4).item() == 1.0


def test_a_short_last_group_has_a_scale_of_its_own() -> None:
    scales = scales_of(torch.cat((torch.full((2, 32), 7.0), torch.full((2, 3), 0.7)), dim=1), INT4, 32)
    assert torch.allclose(scales, torch.tensor([[1.0, 0.1]] * 2))


def test_zeros_stay_zeros_and_have_a_usable_scale() -> None:
    given = torch.zeros(2, 32)
    scales = scales_of(given, INT8)
    assert scales.tolist() == [[1.0], [1.0]] and torch.equal(on_grid(given, scales, INT8), given)


def test_finer_groups_are_nearer() -> None:
    errors = []
    for group in (None, 32, 16):
        scales = scales_of(matrix(), INT4, group)
        errors.append(float((on_grid(matrix(), scales, INT4, group) - matrix()).square().sum()))
    assert errors[0] > errors[1] > errors[2]
