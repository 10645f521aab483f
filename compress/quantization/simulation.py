"""The inputs of quantized matrices as a runtime rounds them, in float32; gradients pass through.

static: ONNX's QuantizeLinear with zero point 0, -128 to 127. dynamic: its DynamicQuantizeLinear, 0 to 255
with a zero point, but with a range per position, where a runtime takes one per call: what a call adds depends
on who shares it, and is measured in the artifact.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme

STEPS = 255


@contextmanager
def activations(linears: Mapping[str, Linear], schemes: Mapping[str, MatrixScheme]) -> Iterator[None]:
    """While open, every call of a matrix whose scheme has 8-bit activations sees its inputs rounded.

    Families with one matrix for query, key and value read its weight without a call of it where only the
    last position is wanted; there its inputs stay as they are.
    """
    handles = []
    for name, scheme in schemes.items():
        if scheme.activations != "none":
            handles.append(linears[name].module.register_forward_pre_hook(_hook(round_inputs(scheme))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    round_: Callable[[Tensor], Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given, *others = args
        return (given + (round_(given.detach()) - given.detach()), *others)

    return hook


def round_inputs(scheme: MatrixScheme) -> Callable[[Tensor], Tensor]:
    """The function that rounds inputs [..., in]; a static scheme has to have its range."""
    if scheme.activations == "dynamic":
        return round_dynamic
    assert scheme.input_range is not None
    largest = scheme.input_range[1]
    return lambda given: round_static(given, largest)


def round_static(given: Tensor, largest: float) -> Tensor:
    """To whole multiples of largest / 127; what lies beyond is clipped."""
    step = largest / 127
    return (given / step).round().clamp(-128, 127) * step


def round_dynamic(given: Tensor) -> Tensor:
    """To 256 even steps over each position's own range, which includes 0."""
    low = given.amin(-1, keepdim=True).clamp(max=0)
    high = given.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / STEPS
    step = torch.where(step > 0, step, torch.ones_like(step))
    zero = (-low / step).round()
    return ((given / step).round() + zero).clamp(0, STEPS).sub(zero) * step
