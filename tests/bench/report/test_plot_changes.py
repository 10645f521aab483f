from xml.etree import ElementTree

from bench.report.parts import RankChange
from bench.report.plot_changes import changes

EDGES = [-100.5, -10.5, -3.5, -0.5, 0.5, 3.5, 10.5, 100.5]


def drawn(counts: list[int]) -> ElementTree.Element:
    found = RankChange(
        candidate="b", against="a", edges=EDGES, counts=counts, better=sum(counts[:3]), same=counts[3],
        worse=sum(counts[4:]),
    )  # fmt: skip
    return ElementTree.fromstring(changes(found, title="t"))


def test_bins_below_0_are_better_and_above_it_worse() -> None:
    kinds = [group.attrib["class"] for group in drawn([1, 2, 3, 9, 4, 1, 0]).findall("g")]
    assert kinds == [f"column {kind}" for kind in ("fewer",) * 3 + ("same",) + ("more",) * 3]


def test_shares_and_edges_are_written() -> None:
    texts = [str(text.text) for text in drawn([1, 2, 3, 9, 4, 1, 0]).iter("text")]
    assert {"better 30%", "same 45%", "worse 25%", "0", "-100", "100"} <= set(texts)


def test_what_a_bar_counts_is_said() -> None:
    first = drawn([1, 2, 3, 9, 4, 1, 0]).findall("g")[0]
    assert first.findtext("title") == "-100 to -11 places: 1 users"


def test_nobody_is_no_error() -> None:
    assert len(drawn([0] * 7).findall("g")) == 7
