"""What bitsandbytes makes of a matrix: the values that its quantized layers compute with, as float32.

Only its functions are called, never its modules, which rewrite their weights (see
`recommender.models.quantized`).
"""

from typing import Any

import torch
from torch import Tensor

from recommender.errors import InputError, require


def as_nf4(matrix: Tensor) -> Tensor:
    """NF4 in blocks of 64 numbers, with double quantization (QLoRA, arXiv 2305.14314), dequantized.

    Rounding it again moves it a little (below 1% of the largest entry), since the scales of its blocks are
    rounded with their mean taken off. Raises InputError without bitsandbytes.
    """
    functional = _functional("nf4")
    numbers, state = functional.quantize_4bit(
        matrix.float().contiguous(), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    values: Tensor = functional.dequantize_4bit(numbers, state)
    return values.float()


def as_llm_int8(matrix: Tensor) -> Tensor:
    """LLM.int8() (arXiv 2208.07339): rows in 8 bits by their largest entry, after rounding to float16.

    What it does with activations (8 bits, outliers in 16) is not in the weights. Raises InputError without
    bitsandbytes, and for entries beyond float16.
    """
    functional = _functional("llm-int8")
    half = matrix.to(torch.float16)
    if not torch.isfinite(half).all():
        raise InputError("a weight is beyond the range of float16", where="quantize.scheme: llm-int8")
    numbers, scales, _ = functional.int8_vectorwise_quant(half.contiguous())
    values: Tensor = functional.int8_vectorwise_dequant(numbers, scales)
    return values.float()


def _functional(kind: str) -> Any:
    return require("bitsandbytes.functional", extra="quantize", for_=f"scheme: {kind}")
