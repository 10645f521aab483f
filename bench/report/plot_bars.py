"""Bars: one value per block (upright), and how a whole is shared out (lying)."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from bench.report.axes import linear_axis
from bench.report.svg import (
    COLOURS,
    NAME,
    WIDTH,
    drawing,
    fitting,
    hint,
    path,
    said,
    text,
    upright,
    width_of,
)  # fmt: skip

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 240, 62, 10, 20, 46


def block_bars(values: Sequence[float], *, y_label: str, title: str) -> Markup:
    """One bar per block; the smallest is marked, because it is the first that one would miss least."""
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    axis = linear_axis([0.0, *values], floor, TOP)
    step = (right - LEFT) / len(values)
    least = min(range(len(values)), key=lambda i: values[i])
    parts = [upright(axis, LEFT, right, y_label, (TOP + floor) / 2)]
    every = -(-len(values) // 12)
    figures = len(values) <= 9
    for block, value in enumerate(values):
        x, top = LEFT + step * (block + 0.5), axis.place(value)
        half = max(step * 0.36, 1)
        kind = "column least" if block == least else "column"
        d = f"M{x - half:.1f} {floor}V{top:.1f}H{x + half:.1f}V{floor}z"
        told = hint(f"block {block}: {value:.4f}")
        parts.append(f'<g class="{kind}">{told}{path("area", d)}</g>')
        if figures or block == least:
            parts.append(text(x, top - 5, f"{value:.2f}", "tick halo", "middle"))
        if block % every == 0:
            parts.append(text(x, floor + 16, str(block), "tick", "middle"))
    parts.append(text((LEFT + right) / 2, floor + 35, "block", "axis", "middle"))
    desc = "; ".join(f"block {block}: {value:.4f}" for block, value in enumerate(values))
    return drawing(HEIGHT, parts, title=title, desc=desc)


def share_bars(
    shares: Sequence[tuple[str, Mapping[str, float], int]], *, names: Sequence[str], title: str
) -> Markup:
    """How the whole of each (label, {name: share}, colour) is divided, in the order of `names`."""
    side, row = 10, 40
    parts, x = [], float(side)
    for index, name in enumerate(names):
        parts.append(f'<rect class="share s{index}" x="{x:.1f}" y="6" width="11" height="11" rx="2"/>')
        parts.append(text(x + 16, 16, name, "tick"))
        x += 16 + width_of(name, NAME) + 14
    for index, (label, part, colour) in enumerate(shares):
        top = 26.0 + row * index
        parts.append(text(side, top + 12, fitting(label, WIDTH - 2 * side), f"name c{colour % COLOURS}"))
        parts.append(_shared(part, names, side, top + 17))
    numbers = (
        f"{label}: {', '.join(f'{n} {part.get(n, 0):.1%}' for n in names)}" for label, part, _ in shares
    )
    return drawing(30 + row * len(shares), parts, title=title, desc="; ".join(numbers))


def _shared(part: Mapping[str, float], names: Sequence[str], side: float, y: float) -> str:
    whole, x, drawn = WIDTH - 2 * side, side, []
    for index, name in enumerate(names):
        share = part.get(name, 0.0)
        width = share * whole
        if width <= 0:
            continue
        told = hint(f"{name}: {share:.1%}")
        drawn.append(
            f'<rect class="share s{index}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="16">{told}</rect>'
        )
        figure = f"{share:.0%}"
        if width > width_of(figure) + 6:
            drawn.append(f'<text class="on s{index}" x="{x + width / 2:.1f}" y="{y + 12}"'
                         f' text-anchor="middle">{said(figure)}</text>')  # fmt: skip
        x += width
    return "".join(drawn)
