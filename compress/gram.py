"""The second moments of what flows into a matrix."""

import torch
from torch import Tensor


def gram(rows: Tensor) -> Tensor:
    """X^T X [in, in] of rows [n, in], in float64, from products in float32; finite rows never overflow.

    Large rows are scaled by a power of two, which changes no digit.
    """
    _, exponent = torch.frexp(rows.abs().max().float())
    scale = 2.0 ** max(0, int(exponent) - 1)
    scaled = rows.float() / scale
    return (scaled.T @ scaled).double() * scale**2
