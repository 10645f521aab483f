"""Symmetric grids: whole numbers times a scale per row, or per group of columns of a row.

Values stay float32 and lie on the grid to the bit (`number * scale`, rounded once), so that whoever has the
scales gets the whole numbers back.
"""

import torch
from torch import Tensor

from recommender.quantization_scheme import Levels


def scales_of(matrix: Tensor, levels: Levels, group: int | None = None) -> Tensor:
    """[out, groups] float32: the smallest scales with which nothing is clipped; 1 for groups of zeros.

    The levels of int4, -8 to 7, are not symmetric: a group whose largest entries are negative gets the finer
    scale that the eighth step allows. `group` None: one scale per row; the last group may be short.
    """
    width = matrix.shape[1]
    size = width if group is None else group
    short = -width % size
    parts = torch.nn.functional.pad(matrix.float(), (0, short)).view(len(matrix), -1, size)
    scales = torch.maximum(parts.amax(2) / levels.high, parts.amin(2) / levels.low)
    return torch.where(scales > torch.finfo(torch.float32).tiny, scales, torch.ones_like(scales))


def expanded(scales: Tensor, group: int | None, width: int) -> Tensor:
    """[out, groups] -> the scale of every column, [out, in] (or [out, 1] where a row has one)."""
    return scales if group is None else scales.repeat_interleave(group, dim=1)[:, :width]


def to_numbers(matrix: Tensor, scales: Tensor, levels: Levels, group: int | None = None) -> Tensor:
    """The nearest whole numbers [out, in], as floats; halves go to the even one."""
    return (matrix / expanded(scales, group, matrix.shape[1])).round().clamp(levels.low, levels.high)


def on_grid(matrix: Tensor, scales: Tensor, levels: Levels, group: int | None = None) -> Tensor:
    """The matrix rounded to the nearest points of the grid (round-to-nearest); a second time changes
    nothing."""
    numbers = to_numbers(matrix, scales, levels, group)
    return numbers * expanded(scales, group, matrix.shape[1])
