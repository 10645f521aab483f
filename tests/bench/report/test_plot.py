import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    front,
    linear_axis,
    log_axis,
    scatter,
    short,
)


def point(label: str, x: float, y: float) -> Point:
    return Point(label, x, y, (x * 0.9, x * 1.1), (y - 0.001, y + 0.001), "circle")


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter(points, x_label="x", y_label="y", title="t"))


numbers = st.floats(1e-3, 1e7, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(numbers, st.floats(0, 1)), min_size=1, max_size=9))
def test_any_points_make_well_formed_svg_with_every_mark_inside(places: list[tuple[float, float]]) -> None:
    root = drawn([Point(f"p{i}", x, y, None, None, "circle") for i, (x, y) in enumerate(places)])
    circles = list(root.iter("circle"))
    assert len(circles) == len(places)
    for circle in circles:
        assert LEFT - 0.1 <= float(circle.attrib["cx"]) <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= float(circle.attrib["cy"]) <= HEIGHT - BOTTOM + 0.1


def test_faster_is_further_right_and_better_is_higher() -> None:
    slow, fast = drawn([point("slow", 10, 0.02), point("fast", 1000, 0.05)]).iter("circle")
    assert float(slow.attrib["cx"]) < float(fast.attrib["cx"])
    assert float(slow.attrib["cy"]) > float(fast.attrib["cy"])


def test_names_are_escaped() -> None:
    root = drawn([point("<b>&", 1, 0.1), Point("b", 2, 0.1, None, None, "diamond")])
    assert [text.text for text in root.iter("text") if "name" in text.attrib["class"]] == ["<b>&", "b"]


def test_equal_points_have_names_that_do_not_cover_one_another() -> None:
    root = drawn([point(f"candidate-{i}", 100, 0.05) for i in range(6)])
    lines = sorted(float(t.attrib["y"]) for t in root.iter("text") if "name" in t.attrib["class"])
    assert all(after - before >= 13.9 for before, after in pairwise(lines))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    a, b, c, d = point("a", 1, 0.9), point("b", 5, 0.5), point("c", 2, 0.4), point("d", 9, 0.1)
    assert [each.label for each in front([d, c, b, a])] == ["a", "b", "d"]
    assert [each.label for each in front([a, point("same", 1, 0.9)])] == ["a", "same"]


@given(st.lists(numbers, min_size=1, max_size=5))
def test_log_ticks_hold_all_values_between_them(values: list[float]) -> None:
    axis = log_axis(values)
    assert all(LEFT - 1e-6 <= axis.place(value) <= WIDTH - RIGHT + 1e-6 for value in values)
    assert len(axis.ticks) >= 1


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5))
def test_linear_ticks_are_few_and_even(values: list[float]) -> None:
    axis = linear_axis(values)
    assert 2 <= len(axis.ticks) <= 8
    steps = [after - before for before, after in pairwise(axis.ticks)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)


@pytest.mark.parametrize(
    ("value", "said"), [(0.05, "0.05"), (20, "20"), (5000, "5k"), (2e6, "2M"), (0.30000000000000004, "0.3")]
)
def test_ticks_read_well(value: float, said: str) -> None:
    assert short(value) == said
