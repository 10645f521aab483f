"""Lines with marks and, at their right ends, names: latency against batch or rate, quality against depth."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from bench.report.axes import Axis, linear_axis, log_axis
from bench.report.svg import (
    COLOURS,
    WIDTH,
    drawing,
    fitting,
    hint,
    level,
    path,
    spread,
    text,
    upright,
    width_of,
)  # fmt: skip

HEIGHT, LEFT, TOP, BOTTOM = 280, 62, 14, 46
WIDEST = 118
"""Room for names, pixels."""
LINE = 15


class Line(NamedTuple):
    """One line: (x, y) by ascending x; `upper` [same length] are the ends of whiskers, None for none."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    upper: Sequence[float | None] = ()
    hollow: bool = False
    notes: Sequence[str] = ()
    """What stands above each mark."""


class Guide(NamedTuple):
    """A dashed line across the plot, `upright` at an x or else level at a y, with what it means."""

    at: float
    label: str
    upright: bool = True


class Look(NamedTuple):
    """Names and kinds of the axes; `x_ticks`: exactly these ticks below."""

    x_label: str
    y_label: str
    log_x: bool = True
    log_y: bool = True
    x_ticks: Sequence[float] = ()


def lines(series: Sequence[Line], look: Look, *, title: str, guides: Sequence[Guide] = ()) -> Markup:
    """All lines over one pair of axes."""
    names = [fitting(each.label, WIDEST) for each in series]
    right = WIDTH - 14 - max(width_of(name) for name in names)  # a single line may go without a name
    floor = HEIGHT - BOTTOM
    x_axis, y_axis = _axes(series, look, guides, right, floor)
    parts = [
        level(x_axis, TOP, floor, look.x_label, (LEFT + right) / 2),
        upright(y_axis, LEFT, right, look.y_label, (TOP + floor) / 2),
    ]
    parts += [_guide(guide, x_axis, y_axis, right, floor) for guide in guides]
    parts += [_line(each, x_axis, y_axis) for each in series]
    ends = [y_axis.place(each.points[-1][1]) for each in series]
    places = spread(ends, LINE, TOP + 4, floor - 2)
    for each, name, end, place in zip(series, names, ends, places, strict=True):
        if not name:
            continue
        x = x_axis.place(each.points[-1][0])
        if abs(place - end) > 4 or x < right - 4:
            parts.append(path("leader", f"M{x + 5:.1f} {end:.1f}L{right + 6:.1f} {place:.1f}"))
        parts.append(text(right + 8, place + 4, name, f"name c{each.colour % COLOURS}"))
    return drawing(HEIGHT, parts, title=title, desc=_desc(series, look, guides))


def _axes(
    series: Sequence[Line], look: Look, guides: Sequence[Guide], right: float, floor: float
) -> tuple[Axis, Axis]:
    xs = [x for each in series for x, _ in each.points] + [guide.at for guide in guides if guide.upright]
    ys = [y for each in series for _, y in each.points]
    ys += [value for each in series for value in each.upper if value is not None]
    ys += [guide.at for guide in guides if not guide.upright]
    y_axis = log_axis(ys, floor, TOP, most=9) if look.log_y else linear_axis(ys, floor, TOP, room=0.06)
    if not look.x_ticks:
        return (log_axis if look.log_x else linear_axis)(xs, LEFT + 10, right - 6), y_axis
    low, high = min(look.x_ticks), max(look.x_ticks)
    if low == high:
        return Axis([low], lambda value: (LEFT + right) / 2), y_axis
    whole = log_axis([low, high], 0, 1) if look.log_x else linear_axis([low, high], 0, 1)
    first, last = whole.place(low), whole.place(high)
    width = right - 12 - (LEFT + 14)
    exact = Axis(
        list(look.x_ticks), lambda value: LEFT + 14 + (whole.place(value) - first) / (last - first) * width
    )
    return exact, y_axis


def _guide(guide: Guide, x_axis: Axis, y_axis: Axis, right: float, floor: float) -> str:
    if not guide.upright:
        y = y_axis.place(guide.at)
        return path("margin", f"M{LEFT} {y:.1f}H{right:.1f}") + text(
            LEFT + 4, y - 4, guide.label, "tick halo"
        )
    x = x_axis.place(guide.at)
    anchor, gap = ("end", -4) if x > (LEFT + right) / 2 else ("start", 4)
    return path("margin", f"M{x:.1f} {TOP}V{floor}") + text(
        x + gap, TOP + 10, guide.label, "tick halo", anchor
    )


def _line(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
    joined = path("line", "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)) if len(places) > 1 else ""
    whiskers, marks = "", []
    for index, (x, y) in enumerate(places):
        if index < len(line.upper) and (high := line.upper[index]) is not None:
            top = y_axis.place(high)
            whiskers += f"M{x:.1f} {y:.1f}V{top:.1f}M{x - 4:.1f} {top:.1f}h8"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if index < len(line.notes) and line.notes[index]:
            marks.append(text(x, y - 9, line.notes[index], "tick halo", "middle"))
    kind = "mark hollow" if line.hollow else "mark"
    bars = path("bar", whiskers)
    return f'<g class="{kind} c{line.colour % COLOURS}">{hint(line.label)}{joined}{bars}{"".join(marks)}</g>'


def _desc(series: Sequence[Line], look: Look, guides: Sequence[Guide]) -> str:
    said_lines = [
        f"{each.label}: {', '.join(f'{y:.4g} at {x:g}' for x, y in each.points)}" for each in series
    ]
    said_guides = [each.label for each in guides]
    return f"{look.y_label} by {look.x_label}. {'; '.join([*said_lines, *said_guides])}."
