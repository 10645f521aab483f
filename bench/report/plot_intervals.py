"""Ratios with their intervals, one row each, around a line where both are alike."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from bench.report.axes import Axis, linear_axis, log_axis
from bench.report.parts import Interval
from bench.report.svg import COLOURS, WIDTH, drawing, fitting, hint, path, text, width_of

SIDE, TOP, BOTTOM, ROW, LANE = 10, 2, 36, 39, 16
SMALL = 12
"""Font size of the figures, pixels."""


class Row(NamedTuple):
    """One ratio; `said` is how it is written, `colour` a class c0, c1, ..., `named`: its name has it too."""

    label: str
    ratio: float
    ci95: Interval | None
    said: str
    colour: int = 0
    named: bool = True


class Scale(NamedTuple):
    """How ratios are laid out; those beyond `limits` are drawn as arrows at the edge."""

    log: bool = False
    limits: Interval | None = None
    percent: bool = False
    band: float | None = None
    """Half the width of what chance alone does around 1 (A/A), drawn as a band."""
    margin: float | None = None
    """A ratio that a candidate has to stay above, drawn as a dashed line."""
    span: Sequence[float] = ()
    """Further values that the axis has to hold, so that several plots share it."""


def intervals(rows: Sequence[Row], scale: Scale, *, x_label: str, title: str) -> Markup:
    """Name and figure of each row above its interval; the line at 1 is where both are alike."""
    floor = TOP + ROW * len(rows) + 2
    axis = _axis(rows, scale)
    lanes = [TOP + ROW * (i + 1) - LANE / 2 - 3 for i in range(len(rows))]
    parts = [_ground(axis, scale, lanes, floor)]
    parts += [_row(row, lane, axis) for row, lane in zip(rows, lanes, strict=True)]
    parts.append(text(WIDTH / 2, floor + 31, x_label, "axis", "middle"))
    return drawing(floor + BOTTOM, parts, title=title, desc="; ".join(f"{r.label}: {r.said}" for r in rows))


def shown_values(rows: Sequence[Row], limits: Interval | None) -> list[float]:
    """The values of the rows that the axis has to hold."""
    values = [value for row in rows for value in (row.ratio, *(row.ci95 or ()))]
    low, high = limits or (min(values), max(values))
    return [min(max(value, low), high) for value in values]


def _axis(rows: Sequence[Row], scale: Scale) -> Axis:
    extra = [1.0, *scale.span]
    if scale.band:
        extra += [1 / (1 + scale.band), 1 + scale.band]
    if scale.margin:
        extra.append(scale.margin)
    values = [*shown_values(rows, scale.limits), *extra]
    if not scale.log:
        return linear_axis(values, SIDE + 8, WIDTH - SIDE - 8)
    return log_axis(values, SIDE + 8, WIDTH - SIDE - 8, most=8)


def _ground(axis: Axis, scale: Scale, lanes: Sequence[float], floor: float) -> str:
    """Ticks below; in every lane the band of chance, the line at 1 and the margin."""
    parts = [path("grid", f"M{SIDE} {floor}H{WIDTH - SIDE}")]
    for tick in axis.ticks:
        x = axis.place(tick)
        said = f"{tick * 100:.4g}%" if scale.percent else f"{tick:.4g}x"
        parts += [path("grid", f"M{x:.1f} {floor}v-4"), text(x, floor + 14, said, "tick", "middle")]
    for y in lanes:
        top, bottom = y - LANE / 2, y + LANE / 2
        if scale.band:
            low, high = axis.place(1 / (1 + scale.band)), axis.place(1 + scale.band)
            parts.append(path("band", f"M{low:.1f} {top}H{high:.1f}V{bottom}H{low:.1f}z"))
        parts.append(path("one", f"M{axis.place(1):.1f} {top}V{bottom}"))
        if scale.margin:
            parts.append(path("margin", f"M{axis.place(scale.margin):.1f} {top}V{bottom}"))
    return "".join(parts)


def _row(row: Row, lane: float, axis: Axis) -> str:
    left, right = SIDE + 8.0, WIDTH - SIDE - 8.0
    line = lane - LANE / 2 - 4
    figures = text(WIDTH - SIDE, line, row.said, "figure", "end")
    room = WIDTH - 2 * SIDE - width_of(row.said, SMALL) - 8
    kind = f"name c{row.colour % COLOURS}" if row.named else "figure"
    name = text(SIDE, line, fitting(row.label, room), kind)
    parts = [hint(f"{row.label}: {row.said}")]
    if row.ci95:
        low, high = (_inside(axis, value, left, right) for value in row.ci95)
        parts.append(path("bar", f"M{low[0]:.1f} {lane}H{high[0]:.1f}" + _end(low, lane) + _end(high, lane)))
    x, beyond = _inside(axis, row.ratio, left, right)
    arrow = f"M{x:.1f} {lane - 5}l{6 * beyond} 5l{-6 * beyond} 5z"
    parts.append(f'<path d="{arrow}"/>' if beyond else f'<circle cx="{x:.1f}" cy="{lane}" r="4.5"/>')
    return f'{name}{figures}<g class="mark c{row.colour % COLOURS}">{"".join(parts)}</g>'


def _inside(axis: Axis, value: float, left: float, right: float) -> tuple[float, int]:
    """Where a value lies, held inside the plot, and on which side it was beyond it (-1, 0, 1)."""
    x = axis.place(max(value, 1e-9))
    if x > right + 0.5:
        return right, 1
    return (left, -1) if x < left - 0.5 else (x, 0)


def _end(place: tuple[float, int], y: float) -> str:
    """A cap where the interval ends, an arrow head where it goes on."""
    x, beyond = place
    if not beyond:
        return f"M{x:.1f} {y - 4}v8"
    return f"M{x - 4 * beyond:.1f} {y - 4}L{x:.1f} {y}L{x - 4 * beyond:.1f} {y + 4}"
