from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bench.report.plot_lines import Guide, Line, Look, lines

LOOK = Look("x", "ms", x_ticks=[1, 32, 256])


def drawn(series: list[Line], look: Look = LOOK, guides: list[Guide] | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(lines(series, look, title="t", guides=guides or []))


def texts(root: ElementTree.Element) -> list[str]:
    return [str(text.text) for text in root.iter("text")]


def test_each_line_has_its_marks_its_name_and_its_whiskers() -> None:
    root = drawn([
        Line("fast", [(1, 1.0), (32, 3.0)], 1, [1.5, None]),
        Line("slow", [(1, 4.0), (32, 9.0), (256, 60.0)], 2),
    ])  # fmt: skip
    fast, slow = root.findall("g")
    assert (len(list(fast.iter("circle"))), len(list(slow.iter("circle")))) == (2, 3)
    assert {"fast", "slow"} <= set(texts(root))
    bars = [path.attrib["d"] for path in fast.iter("path") if path.attrib["class"] == "bar"]
    assert len(bars) == 1 and bars[0].count("V") == 1
    assert "slow: 4 at 1, 9 at 32, 60 at 256" in str(root.findtext("desc"))


def test_ticks_stand_exactly_at_the_batch_sizes() -> None:
    root = drawn([Line("a", [(1, 1.0), (32, 3.0), (256, 4.0)])])
    centres = [circle.attrib["cx"] for circle in root.iter("circle")]
    ticks = {text.text: text.attrib["x"] for text in root.iter("text") if text.get("text-anchor") == "middle"}
    assert [ticks[tick] for tick in ("1", "32", "256")] == centres


def test_names_of_equal_ends_are_spread() -> None:
    root = drawn([Line(f"n{i}", [(1, 2.0), (256, 5.0)], i) for i in range(5)])
    places = sorted(float(text.attrib["y"]) for text in root.iter("text") if str(text.text).startswith("n"))
    assert min(b - a for a, b in pairwise(places)) >= 14.9


@pytest.mark.parametrize("upright", [True, False])
def test_a_guide_is_drawn_and_named(upright: bool) -> None:
    root = drawn([Line("a", [(1, 1.0), (256, 9.0)])], Look("x", "y"), [Guide(5.0, "up to here", upright)])
    assert "up to here" in texts(root)
    assert [path for path in root.iter("path") if path.get("class") == "margin"]


def test_a_single_place_and_a_single_nameless_line_are_drawn_too() -> None:
    root = drawn([Line("", [(4, 2.0)], notes=["5"])], Look("x", "y", log_y=False, x_ticks=[4]))
    assert len(list(root.iter("circle"))) == 1 and "5" in texts(root)
