"""Quality against speed: marks with error bars on both axes, and the front that nothing beats."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from bench.report.axes import Axis, linear_axis, log_axis
from bench.report.parts import Interval
from bench.report.svg import (
    COLOURS,
    NAME,
    WIDTH,
    drawing,
    fitting,
    hint,
    level,
    path,
    text,
    upright,
    width_of,
)

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 46
LINE = 15
"""Least distance of two labels, pixels."""
HEADROOM = 0.08
"""Share of the range that is left free above and below for names."""
NAME_ROOM = 150
"""Widest label, pixels."""


class Point(NamedTuple):
    """One mark with its 95% intervals; `shape` is `circle` or `diamond`, `colour` a class c0, c1, ..."""

    label: str
    x: float
    y: float
    x_ci95: Interval | None
    y_ci95: Interval | None
    shape: str
    colour: int = 0


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, title: str) -> Markup:
    """Points with error bars over a logarithmic x axis; a line joins those that none beats in both.

    Marks on that front are filled, the others hollow.
    """
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    x_axis = log_axis([value for p in points for value in (p.x, *(p.x_ci95 or ()))], LEFT, right)
    ys = [value for p in points for value in (p.y, *(p.y_ci95 or ()))]
    y_axis = linear_axis(ys, floor, TOP, room=HEADROOM)
    best = front(points)
    parts = [
        level(x_axis, TOP, floor, x_label, (LEFT + right) / 2),
        upright(y_axis, LEFT, right, y_label, (TOP + floor) / 2),
        _front_line(best, x_axis, y_axis),
    ]
    parts += [_mark(point, x_axis, y_axis, on_front=point in best) for point in points]
    parts += _labels(points, x_axis, y_axis)
    numbers = "; ".join(f"{p.label}: {p.y:.4f} at {p.x:,.0f} users per second" for p in points)
    desc = f"{numbers}. Nothing beats in both: {', '.join(p.label for p in best)}."
    return drawing(HEIGHT, parts, title=title, desc=desc)


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other point beats or equals in one respect and beats in the other, by ascending x."""
    kept = [
        point
        for point in points
        if not any(o.x >= point.x and o.y >= point.y and (o.x > point.x or o.y > point.y) for o in points)
    ]
    return sorted(kept, key=lambda point: point.x)


def _front_line(best: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    places = [f"{x_axis.place(p.x):.1f} {y_axis.place(p.y):.1f}" for p in best]
    return path("front", f"M{'L'.join(places)}") if len(places) > 1 else ""


def _mark(point: Point, x_axis: Axis, y_axis: Axis, *, on_front: bool) -> str:
    x, y = x_axis.place(point.x), y_axis.place(point.y)
    bars = ""
    if point.y_ci95:
        low, high = (y_axis.place(value) for value in point.y_ci95)
        bars += f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    if point.x_ci95:
        low, high = (x_axis.place(value) for value in point.x_ci95)
        bars += f"M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8"
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if point.shape == "diamond":
        shape = f'<path d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>'
    told = hint(f"{point.label}: {point.y:.4f}, {point.x:,.0f} users per second")
    kind = "mark" if on_front else "mark hollow"
    return f'<g class="{kind} c{point.colour % COLOURS}">{told}{path("bar", bars)}{shape}</g>'


def _labels(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[str]:
    """Names beside the marks, moved up or down until they stand neither on one another nor on bars."""
    marks = [Place(x_axis.place(p.x) - 7, x_axis.place(p.x) + 7, y_axis.place(p.y) + 5) for p in points]
    bars = [place for point in points for place in _along(point, x_axis, y_axis)]
    names: list[Place] = []
    parts = []
    for point in sorted(points, key=lambda point: -point.y):
        x, y = x_axis.place(point.x), y_axis.place(point.y)
        label = fitting(point.label, NAME_ROOM)
        width = width_of(label)
        place = _free(y - 7, width, _sides(x, width), [names, marks, bars])
        names.append(place)
        beside = place.right < x or place.left > x
        if abs(place.line - (y - 7)) > LINE and beside:
            edge = place.right + 1 if place.right < x else place.left - 1
            parts.append(path("leader", f"M{x:.1f} {y:.1f}L{edge:.1f} {place.line - 4:.1f}"))
        middle = (place.left + place.right) / 2
        parts.append(text(middle, place.line, label, f"name c{point.colour % COLOURS}", "middle"))
    return parts


def _sides(x: float, width: float) -> list[float]:
    """Left ends that a label may have: to the right of its mark, to the left, and above or below it."""
    middle = min(max(x - width / 2, LEFT + 2), WIDTH - 2 - width)
    right, left = x + 10, x - 10 - width
    return [*([right] if right + width < WIDTH - 2 else []), *([left] if left > LEFT else []), middle]


class Place(NamedTuple):
    """Where something stands: its ends, and the base line that a text there would have."""

    left: float
    right: float
    line: float

    def meets(self, other: "Place") -> bool:
        """Whether both would cover one another."""
        return self.right >= other.left and self.left <= other.right and abs(self.line - other.line) < LINE


def _along(point: Point, x_axis: Axis, y_axis: Axis) -> list[Place]:
    """What the error bars of a point cover."""
    x, y = x_axis.place(point.x), y_axis.place(point.y)
    found = []
    if point.y_ci95:
        low, high = (y_axis.place(value) for value in point.y_ci95)
        found = [Place(x - 4, x + 4, high + 5 + step * LINE) for step in range(int((low - high) / LINE) + 1)]
    if point.x_ci95:
        left, right = (x_axis.place(value) for value in point.x_ci95)
        found.append(Place(left, right, y + 5))
    return found


def _free(wanted: float, width: float, sides: Sequence[float], taken: Sequence[Sequence[Place]]) -> Place:
    """The free place nearest to the wanted line.

    `taken`: places from what must not be covered to what may be, where there is nothing else nearby.
    """
    for kinds, steps in ((3, 5), (2, 40), (1, 40)):
        avoided = [place for some in taken[:kinds] for place in some]
        for step in range(steps):
            for line in dict.fromkeys((wanted - step * LINE, wanted + step * LINE)):
                if not TOP + NAME * 0.7 <= line <= HEIGHT - BOTTOM - 3:
                    continue
                for left in sides:
                    place = Place(left, left + width, line)
                    if not any(place.meets(other) for other in avoided):
                        return place
    return Place(sides[0], sides[0] + width, wanted)
