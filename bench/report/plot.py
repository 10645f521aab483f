"""Quality against speed as an inline SVG: no script, sharp on paper, coloured by the page's style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from bench.report.schema import Interval

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 46
COLOURS = 8
"""Classes c0 to c7 of the style sheet; a ninth mark has the colour of the first."""
LINE = 14
"""Least distance of two labels, pixels."""
LETTER = 6.4
"""Mean width of a letter of a label, pixels."""


class Point(NamedTuple):
    """One mark with its 95% intervals; `shape` is `circle` or `diamond`."""

    label: str
    x: float
    y: float
    x_ci95: Interval | None
    y_ci95: Interval | None
    shape: str


@dataclass(frozen=True)
class Axis:
    """Ticks and where a value lies, in pixels."""

    ticks: list[float]
    place: Callable[[float], float]


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, title: str) -> Markup:
    """Points with error bars over a logarithmic x axis; a line joins those that none beats in both.

    Marks of point i have the class `c{i % 8}`; `title` is what a screen reader says.
    """
    x_axis = log_axis([value for p in points for value in (p.x, *(p.x_ci95 or ()))])
    y_axis = linear_axis([value for p in points for value in (p.y, *(p.y_ci95 or ()))])
    parts = [_grid(x_axis, y_axis, x_label, y_label), _front_line(points, x_axis, y_axis)]
    parts += [_mark(i, point, x_axis, y_axis) for i, point in enumerate(points)]
    parts += _labels(points, x_axis, y_axis)
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def log_axis(values: Sequence[float]) -> Axis:
    """Ticks at 1, 2, 5 times powers of ten around positive values."""
    low, high = min(values), max(values)
    exponents = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
    candidates = [base * 10.0**exponent for exponent in exponents for base in (1, 2, 5)]
    first = max(i for i, tick in enumerate(candidates) if tick <= low)
    last = min(i for i, tick in enumerate(candidates) if tick >= high)
    ticks = candidates[first : max(last, first + 1) + 1]
    start, span = math.log10(ticks[0]), math.log10(ticks[-1] / ticks[0])
    inner = WIDTH - LEFT - RIGHT
    return Axis(_thinned(ticks), lambda value: LEFT + (math.log10(value) - start) / span * inner)


def _thinned(ticks: list[float]) -> list[float]:
    """Only powers of ten where there are many ticks."""
    if len(ticks) <= 7:
        return ticks
    return [tick for tick in ticks if round(math.log10(tick), 6).is_integer()]


def linear_axis(values: Sequence[float]) -> Axis:
    """Four to eight round ticks around the values."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high), 1e-3)
    width = high - low if high - low > 1e-9 * size else size
    rough = width / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(base * power for base in (1, 2, 5, 10) if base * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = [index * step for index in range(first, last + 1)]
    inner, span = HEIGHT - TOP - BOTTOM, ticks[-1] - ticks[0]
    return Axis(ticks, lambda value: HEIGHT - BOTTOM - (value - ticks[0]) / span * inner)


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other point beats or equals in one respect and beats in the other, by ascending x."""
    kept = [
        point
        for point in points
        if not any(o.x >= point.x and o.y >= point.y and (o.x > point.x or o.y > point.y) for o in points)
    ]
    return sorted(kept, key=lambda point: point.x)


def short(value: float) -> str:
    """0.05, 20, 5k, 1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.6g}"


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{floor}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{short(tick)}</text>'
        )
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    middle_x, middle_y = (LEFT + right) / 2, (TOP + floor) / 2
    parts.append(
        f'<text class="axis" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" x="14" y="{middle_y}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle_y})">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _front_line(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    places = [f"{x_axis.place(p.x):.1f} {y_axis.place(p.y):.1f}" for p in front(points)]
    return f'<path class="front" d="M{"L".join(places)}"/>' if len(places) > 1 else ""


def _mark(index: int, point: Point, x_axis: Axis, y_axis: Axis) -> str:
    x, y = x_axis.place(point.x), y_axis.place(point.y)
    bars = ""
    if point.y_ci95:
        low, high = (y_axis.place(value) for value in point.y_ci95)
        bars += f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    if point.x_ci95:
        low, high = (x_axis.place(value) for value in point.x_ci95)
        bars += f"M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8"
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
    if point.shape == "diamond":
        shape = f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
    hint = f"<title>{escape(point.label)}: {point.y:.4f}, {point.x:,.0f}</title>"
    return f'<g class="mark c{index % COLOURS}">{hint}<path class="bar" d="{bars}"/>{shape}</g>'


def _labels(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[str]:
    """Names beside the marks, moved up or down until they do not stand on one another."""
    taken: list[tuple[float, float, float]] = []  # (left, right, y)
    parts = []
    for index, point in sorted(enumerate(points), key=lambda pair: -pair[1].y):
        x, y = x_axis.place(point.x), y_axis.place(point.y)
        width = len(point.label) * LETTER
        to_left = x + 11 + width > WIDTH - RIGHT and x - 11 - width > LEFT
        left = x - 11 - width if to_left else x + 11
        line = _free_line(y - 7, left, left + width, taken)
        taken.append((left, left + width, line))
        anchor, edge = ("end", x - 11) if to_left else ("start", x + 11)
        if abs(line - (y - 7)) > LINE:
            parts.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{edge:.1f} {line - 4:.1f}"/>')
        parts.append(
            f'<text class="name c{index % COLOURS}" x="{edge:.1f}" y="{line:.1f}" text-anchor="{anchor}">'
            f"{escape(point.label)}</text>"
        )
    return parts


def _free_line(
    wanted: float, left: float, right: float, taken: Sequence[tuple[float, float, float]]
) -> float:
    """The free line nearest to the wanted one, inside the plot."""
    for step in range(40):
        for line in (wanted - step * LINE, wanted + step * LINE):
            inside = TOP + 8 <= line <= HEIGHT - BOTTOM - 2
            if inside and all(right < l or left > r or abs(line - y) >= LINE for l, r, y in taken):  # noqa: E741
                return line
    return wanted
