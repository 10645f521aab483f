from xml.etree import ElementTree

import pytest

from bench.report.plot_heat import cut_map
from recommender.profile import Cut


def cuts(blocks: int) -> list[Cut]:
    return [
        Cut(first=first, length=length, distance=(abs(first - 1) + length) / 100)
        for length in range(1, blocks)
        for first in range(blocks - length + 1)
    ]


def drawn(blocks: int) -> ElementTree.Element:
    return ElementTree.fromstring(cut_map(cuts(blocks), blocks, title="t"))


def cells(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [rect for rect in root.iter("rect") if rect.find("title") is not None]


@pytest.mark.parametrize("blocks", [2, 4, 8, 32])
def test_there_is_one_cell_per_cut(blocks: int) -> None:
    assert len(cells(drawn(blocks))) == len(cuts(blocks))


def test_the_cheapest_cut_of_each_length_has_a_frame() -> None:
    best = [str(cell.findtext("title")) for cell in cells(drawn(4)) if "best" in cell.attrib["class"]]
    assert sorted(best) == ["block 1: 0.0100", "blocks 1 to 2: 0.0200", "blocks 1 to 3: 0.0300"]


def test_greater_distances_have_darker_shades() -> None:
    shades = {str(c.findtext("title")).split(": ")[1]: c.attrib["class"].split()[1] for c in cells(drawn(8))}
    assert shades["0.0100"] == "h0" and shades[max(shades)] == "h5"


def test_figures_stand_in_cells_with_room_only() -> None:
    def figures(blocks: int) -> int:
        return sum(text.attrib["class"].startswith("on") for text in drawn(blocks).iter("text"))

    assert figures(8) == len(cuts(8)) and figures(32) == 0


def test_equal_distances_are_no_error() -> None:
    same = [Cut(first=i, length=1, distance=0.2) for i in range(3)]
    assert len(cells(ElementTree.fromstring(cut_map(same, 3, title="t")))) == 3
