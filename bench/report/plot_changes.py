"""How the places of the true next items moved: a histogram whose bins grow with the distance."""

import math
from itertools import pairwise

from markupsafe import Markup

from bench.report.axes import Axis, linear_axis
from bench.report.parts import RankChange
from bench.report.svg import WIDTH, drawing, hint, path, text, upright, width_of

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 240, 62, 14, 30, 46


def changes(found: RankChange, *, title: str) -> Markup:
    """One bar per bin: to the left of the middle the candidate is better, to the right worse."""
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    axis = linear_axis([0, *found.counts], floor, TOP)
    step = (right - LEFT) / max(len(found.counts), 1)
    parts = [upright(axis, LEFT, right, "users", (TOP + floor) / 2)]
    for index, count in enumerate(found.counts):
        low, high = found.edges[index], found.edges[index + 1]
        kind = "fewer" if high <= 0 else "more" if low > 0 else "same"
        parts.append(_bar(index, count, (low, high), kind, axis, step))
    parts.append(_edges(found, step, floor))
    parts.append(text((LEFT + right) / 2, floor + 35, "change in places (below 0: better)", "axis", "middle"))
    total = max(found.better + found.same + found.worse, 1)
    parts.append(text(LEFT, 14, f"better {found.better / total:.0%}", "figure fewer"))
    parts.append(text((LEFT + right) / 2, 14, f"same {found.same / total:.0%}", "figure same", "middle"))
    parts.append(text(right, 14, f"worse {found.worse / total:.0%}", "figure more", "end"))
    desc = f"{found.better:,} users better, {found.same:,} the same, {found.worse:,} worse."
    return drawing(HEIGHT, parts, title=title, desc=desc)


def _bar(index: int, count: int, ends: tuple[float, float], kind: str, axis: Axis, step: float) -> str:
    x, top, floor = LEFT + step * index, axis.place(count), axis.place(0)
    d = f"M{x + 0.75:.2f} {floor:.1f}V{top:.1f}H{x + step - 0.75:.2f}V{floor:.1f}z"
    first, last = math.ceil(ends[0]), math.ceil(ends[1]) - 1  # changes are whole numbers
    places = f"{first:+,}" if first == last else f"{first:+,} to {last:+,}"
    told = hint(f"{places} places: {count:,} users")
    return f'<g class="column {kind}">{told}{path("area", d)}</g>'


def _places(change: int) -> str:
    """-32k, -316, 10."""
    return str(change) if abs(change) < 1000 else f"{float(f'{change:.2g}') / 1e3:g}k"


def _edges(found: RankChange, step: float, floor: float) -> str:
    """0 under its bin, and as many edges as can stand side by side, the outer ones first."""
    places = [(LEFT + step * index, edge) for index, edge in enumerate(found.edges) if abs(edge) >= 1]
    places.sort(key=lambda place: -abs(place[1]))
    for index, (low, high) in enumerate(pairwise(found.edges)):
        if low <= 0 < high:
            places.insert(0, (LEFT + step * (index + 0.5), 0.0))
    taken: list[tuple[float, float]] = []
    parts = []
    for x, edge in places:
        name = _places(math.trunc(edge))
        half = width_of(name, 12) / 2 + 3
        if x + half > WIDTH + 2 or any(x - half < r and x + half > l for l, r in taken):  # noqa: E741
            continue
        taken.append((x - half, x + half))
        parts.append(
            (path("grid", f"M{x:.1f} {floor}v4") if edge else "")
            + text(x, floor + 16, name, "tick", "middle")
        )
    return "".join(parts)
