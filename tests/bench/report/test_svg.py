from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from bench.report.svg import drawing, fitting, hint, spread, text, width_of
from tests.bench.report.variations import ATTACKS


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(1, 20))
def test_spread_keeps_order_distance_and_bounds(wanted: list[float], least: float) -> None:
    places = spread(wanted, least, 0, 100)
    step = min(least, 100 / max(len(wanted) - 1, 1))
    ordered = sorted(places)
    assert all(after - before >= step - 1e-6 for before, after in pairwise(ordered))
    assert ordered[0] >= -1e-6 and ordered[-1] <= 100 + 1e-6
    by_wish = [place for _, place in sorted(zip(wanted, places, strict=True), key=lambda pair: pair[0])]
    assert sorted(by_wish) == by_wish or len(set(wanted)) < len(wanted)


def test_places_with_room_between_them_stay() -> None:
    assert spread([10, 50, 30], 15, 0, 100) == [10, 50, 30]


@given(st.text(max_size=60), st.floats(30, 200))
def test_a_fitting_name_has_room(name: str, room: float) -> None:
    assert width_of(fitting(name, room)) <= room


def test_wide_letters_are_wide() -> None:
    assert width_of("漢字", 10) == 20 and width_of("ab", 10) < 12


def test_attacks_become_text_of_a_well_formed_drawing() -> None:
    parts = [text(1, 2, attack, "name") + f"<g>{hint(attack)}</g>" for attack in ATTACKS]
    root = ElementTree.fromstring(drawing(10, parts, title="".join(ATTACKS), desc=ATTACKS[0]))
    assert {element.tag for element in root.iter()} == {"svg", "title", "desc", "text", "g"}
    assert [element.text for element in root.iter("text")][:3] == list(ATTACKS[:3])
    assert root.attrib["role"] == "img" and root.attrib["aria-label"].startswith("<script>")
