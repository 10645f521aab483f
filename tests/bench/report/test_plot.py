from itertools import combinations
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report.plot import BOTTOM, HEIGHT, LEFT, LINE, RIGHT, TOP, Point, front, scatter
from bench.report.svg import WIDTH, width_of


def point(label: str, x: float, y: float) -> Point:
    return Point(label, x, y, (x * 0.9, x * 1.1), (y - 0.001, y + 0.001), "circle")


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter(points, x_label="x", y_label="y", title="t"))


def names(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [text for text in root.iter("text") if "name" in text.attrib["class"]]


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


def test_both_error_bars_are_drawn_where_both_intervals_are_known() -> None:
    both, none = drawn([point("a", 10, 0.02), Point("b", 50, 0.03, None, None, "circle")]).findall("g")
    (bar,) = [path.attrib["d"] for path in both.iter("path") if path.attrib["class"] == "bar"]
    assert "V" in bar and "H" in bar
    assert not [path for path in none.iter("path") if path.attrib.get("class") == "bar"]


def test_names_are_escaped() -> None:
    root = drawn([point("<b>&", 1, 0.1), Point("b", 2, 0.1, None, None, "diamond")])
    assert sorted(str(text.text) for text in names(root)) == ["<b>&", "b"]


def test_equal_points_have_names_that_do_not_cover_one_another() -> None:
    root = drawn([point(f"candidate-{i}", 100, 0.05) for i in range(6)])
    places = []
    for name in names(root):
        half = width_of(str(name.text)) / 2
        places.append((float(name.attrib["x"]), float(name.attrib["y"]), half))
    for (x, y, half), (other_x, other_y, other_half) in combinations(places, 2):
        assert abs(y - other_y) >= LINE - 0.11 or abs(x - other_x) >= half + other_half


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    a, b, c, d = point("a", 1, 0.9), point("b", 5, 0.5), point("c", 2, 0.4), point("d", 9, 0.1)
    assert [each.label for each in front([d, c, b, a])] == ["a", "b", "d"]
    assert [each.label for each in front([a, point("same", 1, 0.9)])] == ["a", "same"]


def test_marks_off_the_front_are_hollow_and_the_front_is_said() -> None:
    root = drawn([point("a", 1, 0.9), point("b", 5, 0.5), point("c", 2, 0.4)])
    assert ["hollow" in mark.attrib["class"] for mark in root.findall("g")] == [False, False, True]
    assert "Nothing beats in both: a, b." in str(root.findtext("desc"))
    assert [path for path in root.iter("path") if path.attrib.get("class") == "front"]
