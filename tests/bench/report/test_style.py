"""The style sheet: enough contrast, in daylight and in the dark; every class that plots use is known."""

import re
from itertools import product
from pathlib import Path

import pytest

import bench.report.html as subject
from bench.report.html import to_html
from tests.bench.report.full import full_report

CSS = Path(subject.__file__).with_name("report.css").read_text()


def palette(dark: bool) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    names = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", blocks[0]))
    return names | dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", blocks[1])) if dark else names


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_4_5_or_more(dark: bool) -> None:
    colours = palette(dark)
    texts = ["ink", "soft", "good", "bad", "open", "accent", *(f"c{i}" for i in range(8))]
    for text, ground in product(texts, ("paper", "card", "stripe")):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_figures_on_shades_have_a_contrast_of_4_5_or_more() -> None:
    colours = palette(dark=False)
    (dark_ink,) = set(re.findall(r"\.on\.h3 \{ fill: (#[0-9a-f]+)", CSS))
    on_dark = {"s0", "s1", "h4", "h5"}
    for shade in (*(f"s{i}" for i in range(4)), *(f"h{i}" for i in range(6))):
        ink = "#ffffff" if shade in on_dark else dark_ink
        assert contrast(ink, colours[shade]) >= 4.5, shade


def test_dark_colours_are_for_screens_only() -> None:
    assert "@media screen and (prefers-color-scheme: dark)" in CSS
    assert CSS.count("prefers-color-scheme") == 1


def test_every_class_of_a_plot_has_a_style() -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", to_html(full_report()), flags=re.DOTALL))
    used = {name for names in re.findall(r'class="([^"]+)"', plots) for name in names.split()}
    unknown = {name for name in used if not re.search(rf"\.{name}\b", CSS)}
    assert unknown <= {"area", "heat", "share"}, "shapes that take the colour of a second class"
