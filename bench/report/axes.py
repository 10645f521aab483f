"""Axes of plots: round ticks around the values, and where a value lies in pixels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Ticks and where a value lies, in pixels."""

    ticks: list[float]
    place: Callable[[float], float]


def log_axis(values: Sequence[float], start: float, end: float, *, most: int = 6) -> Axis:
    """Ticks at 1, 2, 5 times powers of ten around positive values; the lowest tick lies at `start`.

    What is not positive has no place on such an axis: it lies at `start`, too. More than `most` ticks are
    thinned to powers of ten.
    """
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    exponents = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
    candidates = [base * 10.0**exponent for exponent in exponents for base in (1, 2, 5)]
    first = max(i for i, tick in enumerate(candidates) if tick <= low)
    last = min(i for i, tick in enumerate(candidates) if tick >= high)
    ticks = candidates[first : max(last, first + 1) + 1]
    begin, span = math.log10(ticks[0]), math.log10(ticks[-1] / ticks[0])
    return Axis(
        _thinned(ticks, most),
        lambda value: start + (math.log10(max(value, ticks[0])) - begin) / span * (end - start),
    )


def _thinned(ticks: list[float], most: int) -> list[float]:
    if len(ticks) <= most:
        return ticks
    tens = [tick for tick in ticks if round(math.log10(tick), 6).is_integer()]
    return tens[:: math.ceil(len(tens) / most)]


def linear_axis(values: Sequence[float], start: float, end: float, *, room: float = 0.0) -> Axis:
    """Two to six round ticks between the lowest value, at `start`, and the highest, at `end`.

    `room`: share of the range that is left free on both sides.
    """
    low, high = min(values), max(values)
    size = max(abs(low), abs(high), 1e-3)
    if high - low <= 1e-9 * size:
        low, high = low - size / 2, high + size / 2
    free = (high - low) * room
    low, high = low - free, high + free
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(base * power for base in (1, 2, 2.5, 5, 10) if base * power >= rough * (1 - 1e-9))
    inside = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Axis(
        [index * step for index in inside], lambda value: start + (value - low) / (high - low) * (end - start)
    )


def short(value: float) -> str:
    """0.05, 20, 5k, 1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return "0" if abs(value) < 1e-12 else f"{value:.6g}"
