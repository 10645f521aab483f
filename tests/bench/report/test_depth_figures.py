from xml.etree import ElementTree

import pytest

from bench.report.depth_figures import profile_figures
from recommender.profile import Depth, DepthProfile
from tests.bench.report.full import full_report


@pytest.fixture(scope="module")
def profile() -> DepthProfile:
    return (full_report().sections.depth_profile or [])[0]


def texts(profile: DepthProfile) -> list[set[str]]:
    found = profile_figures(full_report(), profile).figures
    return [{str(text.text) for text in ElementTree.fromstring(figure.svg).iter("text")} for figure in found]


def test_influence_cuts_greedy_order_and_quality_are_drawn(profile: DepthProfile) -> None:
    influence, cuts, greedy, depths = texts(profile)
    assert "0.61" in influence and "first block that goes" in cuts
    assert {"5", "blocks gone"} <= greedy
    assert {"trained again", "cut only", "1", "2", "4", "8"} <= depths


def test_only_what_was_measured_is_drawn(profile: DepthProfile) -> None:
    part = profile.model_copy(update={"cuts": [], "greedy": [], "depths": profile.depths[:1]})
    assert len(texts(part)) == 1


def test_orders_of_removal_have_lines_of_their_own(profile: DepthProfile) -> None:
    def depth(order: str, blocks: int) -> Depth:
        return Depth(
            blocks=blocks, kept=list(range(blocks)), retrained=False, quality={"ndcg@10": blocks / 100},
            body_parameters=1, order=order,
        )  # fmt: skip

    several = [depth(order, blocks) for order in ("first", "greedy") for blocks in (1, 2)]
    shown = texts(profile.model_copy(update={"depths": several}))[-1]
    assert {"cut only, first", "cut only, greedy"} <= shown


def test_a_deep_body_has_few_ticks_and_all_cells(profile: DepthProfile) -> None:
    deep = profile.model_copy(update={"blocks": 64, "block_influence": [0.1 + i / 100 for i in range(64)]})
    assert len(texts(deep)[0]) < 30
