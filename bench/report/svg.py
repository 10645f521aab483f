"""What all plots are drawn with: inline SVG without scripts, coloured by the page's style sheet.

Plots are as wide as a phone, so that their text stays readable there; wider pages set several side by side.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from bench.report.axes import Axis, short
from bench.report.visible import clipped, visible

WIDTH = 400
COLOURS = 8
"""Classes c0 to c7 of the style sheet; a ninth candidate has the colour of the first."""
LETTER = 0.58
"""Mean width of a letter, in units of the font size."""
NAME = 12.5
"""Font size of names, pixels."""


def drawing(height: float, parts: Iterable[str], *, title: str, desc: str) -> Markup:
    """The whole SVG; `title` names it and `desc` says its numbers to those who cannot see it."""
    head = (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{said(title)}">'
        f"<title>{said(title)}</title><desc>{said(desc)}</desc>"
    )
    return Markup(head + "".join(parts) + "</svg>")


def said(text: str) -> str:
    """Text that may stand in an element or an attribute."""
    return str(escape(visible(text)))


def text(x: float, y: float, what: str, kind: str, anchor: str = "start") -> str:
    """One line of text; `kind` is its class."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{said(what)}</text>'


def path(kind: str, d: str) -> str:
    """A line or an area; `kind` is its class."""
    return f'<path class="{kind}" d="{d}"/>' if d else ""


def hint(what: str) -> str:
    """What a pointer that rests on the mark is told."""
    return f"<title>{said(what)}</title>"


def width_of(what: str, size: float = NAME) -> float:
    """About how wide a text is, pixels; letters of East Asia are as wide as they are high."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in what)
    return size * (wide + LETTER * (len(what) - wide))


def fitting(what: str, room: float, size: float = NAME) -> str:
    """As much of a name as there is room for, its middle left out."""
    if not what:
        return ""
    for letters in range(min(len(what), int(room / (LETTER * size)) + 1), 2, -1):
        if width_of(shown := clipped(what, letters), size) <= room:
            return shown
    return clipped(what, 2)


def spread(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, `least` apart where [low, high] has the room; order is kept."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    step = min(least, (high - low) / max(len(wanted) - 1, 1))
    places = [0.0] * len(wanted)
    floor = low
    for i in order:
        places[i] = floor = max(wanted[i], floor)
        floor += step
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - step
    return places


def upright(axis: Axis, left: float, right: float, label: str, middle: float) -> str:
    """Horizontal grid lines with their ticks at the left, and the axis' name along it."""
    parts = []
    for tick in axis.ticks:
        y = axis.place(tick)
        parts.append(
            path("grid", f"M{left} {y:.1f}H{right}") + text(left - 6, y + 4, short(tick), "tick", "end")
        )
    return "".join([*parts, beside(label, middle)])


def beside(label: str, middle: float) -> str:
    """The name of an upright axis, read from below."""
    turned = f'text-anchor="middle" transform="rotate(-90 13 {middle:.1f})"'
    return f'<text class="axis" x="13" y="{middle:.1f}" {turned}>{said(label)}</text>'


def level(axis: Axis, top: float, floor: float, label: str, middle: float) -> str:
    """Vertical grid lines with their ticks below, and the axis' name under them."""
    parts = []
    for tick in axis.ticks:
        x = axis.place(tick)
        parts.append(
            path("grid", f"M{x:.1f} {top}V{floor}") + text(x, floor + 16, short(tick), "tick", "middle")
        )
    return "".join([*parts, text(middle, floor + 35, label, "axis", "middle")])
