from xml.etree import ElementTree

import pytest

from bench.report.plot_bars import block_bars, share_bars


def bars(values: list[float]) -> ElementTree.Element:
    return ElementTree.fromstring(block_bars(values, y_label="influence", title="t"))


def height(group: ElementTree.Element) -> float:
    d = group.findall("path")[0].attrib["d"]
    start, top = d[1:].split("V")[0].split()[1], d.split("V")[1].split("H")[0]
    return float(start) - float(top)


def test_bars_are_as_high_as_their_values() -> None:
    low, high = (height(group) for group in bars([0.1, 0.4]).findall("g"))
    assert high == pytest.approx(4 * low, abs=0.3)


def test_the_smallest_is_marked() -> None:
    kinds = [group.attrib["class"] for group in bars([0.3, 0.1, 0.2]).findall("g")]
    assert kinds == ["column", "column least", "column"]


@pytest.mark.parametrize("count", [1, 8, 32, 80])
def test_any_number_of_blocks_has_few_ticks(count: int) -> None:
    root = bars([0.1 + i / 100 for i in range(count)])
    assert len(root.findall("g")) == count
    ticks = [text for text in root.iter("text") if text.attrib["class"] == "tick"]
    assert len(ticks) <= 12 + 6


def test_influence_that_is_0_or_a_little_below_it_is_drawn() -> None:
    assert len(bars([0.0, -1e-9]).findall("g")) == 2


def test_shares_fill_the_whole_width_in_order() -> None:
    shares = [("a", {"head": 0.5, "tail": 0.5}, 0), ("b", {"head": 1.0}, 1)]
    root = ElementTree.fromstring(share_bars(shares, names=("head", "tail"), title="t"))
    rects = [rect for rect in root.iter("rect") if rect.get("rx") is None]
    widths = [float(rect.attrib["width"]) for rect in rects]
    assert widths == [190.0, 190.0, 380.0]
    assert [str(text.text) for text in root.iter("text") if "on " in text.attrib["class"]] == [
        "50%",
        "50%",
        "100%",
    ]
    assert "a: head 50.0%, tail 50.0%; b: head 100.0%, tail 0.0%" in str(root.findtext("desc"))
