"""Angular distance of every contiguous cut: first block that goes across, number of blocks upwards."""

from collections.abc import Sequence

from markupsafe import Markup

from bench.report.axes import short
from bench.report.svg import WIDTH, beside, drawing, hint, said, text
from recommender.profile import Cut

LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 46
LEVELS = 6
"""Classes h0 (least) to h5 of the style sheet."""


def cut_map(cuts: Sequence[Cut], blocks: int, *, title: str) -> Markup:
    """One cell per cut; the cheapest cut of each length has a frame."""
    side = (WIDTH - LEFT - RIGHT) / blocks
    height = min(side, 40.0)
    longest = max(cut.length for cut in cuts)
    floor = TOP + height * longest
    low, high = min(cut.distance for cut in cuts), max(cut.distance for cut in cuts)
    cheapest = {
        length: min((c for c in cuts if c.length == length), key=lambda c: c.distance).first
        for length in {cut.length for cut in cuts}
    }
    parts = []
    for cut in sorted(cuts, key=lambda cut: cheapest[cut.length] == cut.first):
        place = LEFT + side * cut.first, floor - height * cut.length
        parts.append(_cell(cut, place, (side, height), (low, high), cheapest[cut.length] == cut.first))
    parts.append(_names(blocks, longest, side, height, floor))
    if blocks >= 4 and longest >= 3:
        parts.append(_key(low, high))
    told = "; ".join(
        f"{cut.length} from block {cut.first}: {cut.distance:.3f}"
        for cut in cuts if cheapest[cut.length] == cut.first
    )  # fmt: skip
    return drawing(floor + BOTTOM, parts, title=title, desc=f"Cheapest cut of each length: {told}.")


def _cell(
    cut: Cut, place: tuple[float, float], size: tuple[float, float], ends: tuple[float, float], best: bool
) -> str:
    (x, y), (width, height), (low, high) = place, size, ends
    share = (cut.distance - low) / (high - low) if high > low else 0.0
    shade = min(int(share * LEVELS), LEVELS - 1)
    last = cut.first + cut.length - 1
    which = f"block {cut.first}" if cut.length == 1 else f"blocks {cut.first} to {last}"
    gap = 1 if width > 14 else 0.25
    frame = " best" if best else ""
    rect = (
        f'<rect class="heat h{shade}{frame}" x="{x + gap:.2f}" y="{y + gap:.2f}" '
        f'width="{width - 2 * gap:.2f}" height="{height - 2 * gap:.2f}">'
        f"{hint(f'{which}: {cut.distance:.4f}')}</rect>"
    )
    if width < 34:
        return rect
    figure = f"{cut.distance:.2f}"
    return rect + (
        f'<text class="on h{shade}" x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}" '
        f'text-anchor="middle">{said(figure)}</text>'
    )


def _names(blocks: int, longest: int, side: float, height: float, floor: float) -> str:
    parts = []
    for block in range(0, blocks, -(-blocks // 12)):
        parts.append(text(LEFT + side * (block + 0.5), floor + 16, str(block), "tick", "middle"))
    for length in range(1, longest + 1, -(-longest // 12)):
        parts.append(text(LEFT - 6, floor - height * (length - 0.5) + 4, str(length), "tick", "end"))
    middle = (TOP + floor) / 2
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, floor + 35, "first block that goes", "axis", "middle"))
    parts.append(beside("blocks that go", middle))
    return "".join(parts)


def _key(low: float, high: float) -> str:
    """What the shades mean, in the corner that no cut lies in."""
    width, x, y = 13, WIDTH - RIGHT - 13 * LEVELS, TOP + 16
    parts = [
        f'<rect class="heat h{shade}" x="{x + width * shade}" y="{y}" width="{width}" height="10"/>'
        for shade in range(LEVELS)
    ]
    parts.append(text(x, y - 5, short(round(low, 2)), "tick"))
    parts.append(text(x + width * LEVELS, y - 5, short(round(high, 2)), "tick", "end"))
    return "".join(parts)
