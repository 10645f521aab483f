from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report.plot_intervals import SIDE, Row, Scale, intervals, shown_values
from bench.report.svg import WIDTH

LIMITS = (0.0, 2.0)


def drawn(rows: list[Row], scale: Scale) -> ElementTree.Element:
    return ElementTree.fromstring(intervals(rows, scale, x_label="x", title="t"))


ratios = st.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ratios, ratios, ratios), min_size=1, max_size=6), st.booleans())
def test_any_ratios_stay_inside_the_drawing(values: list[tuple[float, float, float]], log: bool) -> None:
    rows = [Row("r", b, (a, c), "said") for a, b, c in (sorted(each) for each in values)]
    root = drawn(rows, Scale(log=log, limits=None if log else LIMITS, band=0.1, margin=0.97))
    marks = root.findall("g")
    assert len(marks) == len(rows)
    for circle in root.iter("circle"):
        assert SIDE <= float(circle.attrib["cx"]) <= WIDTH - SIDE


def test_a_ratio_above_1_lies_right_of_the_line_at_1() -> None:
    root = drawn([Row("less", 0.9, (0.88, 0.92), ""), Row("more", 1.1, (1.05, 1.2), "")], Scale())
    less, more = (float(circle.attrib["cx"]) for circle in root.iter("circle"))
    (one,) = {
        float(path.attrib["d"][1:].split()[0]) for path in root.iter("path") if path.attrib["class"] == "one"
    }
    assert less < one < more


def test_the_band_of_chance_and_the_margin_appear_only_where_they_are_known() -> None:
    def kinds(scale: Scale) -> set[str]:
        return {str(path.get("class")) for path in drawn([Row("a", 1.1, None, "")], scale).iter("path")}

    assert {"band", "margin"} <= kinds(Scale(band=0.02, margin=0.97))
    assert not {"band", "margin"} & kinds(Scale(band=0.0))


def test_what_lies_beyond_the_limits_is_an_arrow_at_the_edge() -> None:
    root = drawn(
        [Row("far", 7.0, (1.5, 20.0), "700%"), Row("near", 1.0, (0.9, 1.1), "100%")], Scale(limits=LIMITS)
    )
    far, near = root.findall("g")
    assert far.find("circle") is None and near.find("circle") is not None
    assert shown_values([Row("far", 7.0, (1.5, 20.0), "")], LIMITS) == [2.0, 1.5, 2.0]


def test_name_and_figure_share_a_line_without_touching() -> None:
    root = drawn([Row("very-long-name-" * 20, 1.0, None, "101.1% (99.6 to 102.6)")], Scale())
    name, figure = (
        text.text for text in list(root.iter("text")) if text.attrib["class"] in ("name c0", "figure")
    )
    assert {str(name), str(figure)} >= {"101.1% (99.6 to 102.6)"} or "…" in str(figure)
    assert any("…" in str(text.text) for text in root.iter("text"))
    assert "very-long-name-very" in str(root.findtext("desc"))
