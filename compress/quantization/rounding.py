"""One matrix in the way that a scheme says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from compress.quantization.bits_and_bytes import as_llm_int8, as_nf4
from compress.quantization.gptq import gptq
from compress.quantization.grid import on_grid, scales_of
from compress.quantization.simulation import activations
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme


class Rounded(NamedTuple):
    """A quantized matrix."""

    values: Tensor  # [out, in] float32
    scales: Tensor | None  # [out, groups]; None where the format is not a grid of ours


def rounded(matrix: Tensor, scheme: MatrixScheme, hessian: Tensor | None = None) -> Rounded:
    """The matrix [out, in] as the scheme says; with the Hessian of its inputs by GPTQ, else to nearest."""
    match scheme.weights:
        case "fp32":
            return Rounded(matrix.clone(), None)
        case "nf4":
            return Rounded(as_nf4(matrix), None)
        case "llm-int8":
            return Rounded(as_llm_int8(matrix), None)
    levels = scheme.levels
    assert levels is not None  # int8 and int4 have some
    scales = scales_of(matrix, levels, scheme.group)
    if hessian is None:
        return Rounded(on_grid(matrix, scales, levels, scheme.group), scales)
    return Rounded(gptq(matrix, hessian.to(matrix.device), scales, levels, scheme.group), scales)


def round_in_place(
    linears: Mapping[str, Linear], schemes: Mapping[str, MatrixScheme], hessians: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Round these matrices; the scales of those that have some. Those with a Hessian are rounded by GPTQ."""
    scales = {}
    with torch.no_grad():
        for name, scheme in schemes.items():
            found = rounded(linears[name].matrix(), scheme, hessians.get(name))
            linears[name].matrix().copy_(found.values)
            if found.scales is not None:
                scales[name] = found.scales
    return scales


@contextmanager
def tried(
    linears: Mapping[str, Linear],
    schemes: Mapping[str, MatrixScheme],
    round_: Callable[[Mapping[str, MatrixScheme]], object] | None = None,
) -> Iterator[None]:
    """While open, these matrices are rounded and their inputs are in as many bits as served.

    `round_` rounds them in place; None: to nearest. `schemes` hold the input ranges that they need. The
    weights are put back to the bit.
    """
    named = {name: linears[name] for name in schemes}
    before = {name: linear.matrix().clone() for name, linear in named.items()}
    try:
        with ExitStack() as open_:
            if round_ is None:
                round_in_place(named, schemes, {})
            else:
                round_(schemes)
            open_.enter_context(activations(named, schemes))
            yield
    finally:
        with torch.no_grad():
            for name, linear in named.items():
                linear.matrix().copy_(before[name])
