"""The pages and the plan of a depth profile."""

from typing import Any

import pytest
import yaml

from compress.depth_pages import ENOUGH, plan_text, profile_text, spans, suggestion
from recommender.profile import Depth, DepthProfile


def made_up(*depths: tuple[list[int], float, bool]) -> DepthProfile:
    """A profile of 4 blocks whose depths have these NDCGs, trained or not; the whole has 0.5."""
    found = [
        Depth(
            blocks=len(kept),
            kept=kept,
            retrained=trained,
            quality={"hr@10": 0.6, "ndcg@10": ndcg, "mrr": 0.4},
            body_parameters=1000 * len(kept),
            order="greedy" if trained else "first",
            init="base" if trained else None,
            seconds_per_epoch=2.5 if trained else None,
        )
        for kept, ndcg, trained in (([0, 1, 2, 3], 0.5, False), *depths)
    ]
    return DepthProfile.model_validate(
        {
            "of": "teacher", "blocks": 4, "users": 10, "seed": 1, "block_influence": [0.4, 0.1, 0.3, 0.2],
            "cuts": [{"first": at, "length": 1, "distance": 0.4 - at / 10} for at in range(4)],
            "greedy": [{"block": 1, "validation_loss": 2.5}], "validation_loss": 2.0, "depths": found,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("depths", "kept"),
    [
        ([([0], 0.4849, False), ([0, 1], 0.4851, False)], [0, 1]),
        ([([0], 0.49, False), ([2], 0.495, False)], [2]),
        ([([0], 0.6, False), ([0, 1], 0.3, True), ([0, 1, 2], 0.4, True)], [0, 1, 2]),
        ([([0], 0.1, False)], [0, 1, 2, 3]),
        ([([0], 0.1, False), ([0, 3], 0.5, True)], [0, 3]),
        ([([0], 0.6, True), ([0, 1], 0.7, True), ([0, 1, 2, 3], 0.7, True)], [0, 1]),
        ([([0], 0.4, True), ([0, 1, 2, 3], 0.3, True), ([0, 3], 0.49, True)], [0, 3]),
    ],
    ids=[
        "fewest with enough",
        "best of equals",
        "trained ones decide",
        "nothing to spare",
        "trained",
        "longer training is no merit",
        "training hurt",
    ],
)
def test_the_fewest_blocks_with_enough_quality_are_suggested(depths: Any, kept: list[int]) -> None:
    assert ENOUGH == 0.97
    assert suggestion(made_up(*depths)).kept == kept


def test_the_pages_say_what_was_measured() -> None:
    profile = made_up(([0, 1, 3], 0.48, False), ([0, 3], 0.45, True))
    page = profile_text(profile, "beauty")
    blocks = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    assert blocks[1:6] == ["| ---", "| 1", "| 3", "| 2", "| 0"]
    assert "| 1 | 0.1000 | 1 | 2.5000 |" in page and "| 3 | 0.2000 |  |  |" in page
    assert "| 1 | 3 | 0.1000 |" in page
    assert "| 3 | 0-1, 3 | first | no | 0.4800 | 0.6000 | 0.4000 | 96.0% | 3,000 |  |" in page
    assert "| 2 | 0, 3 | greedy | from base | 0.4500 | 0.6000 | 0.4000 | 90.0% | 2,000 | 2.5 |" in page
    assert "Put\n4 into `keep` to tell." in page
    controlled = profile_text(made_up(([0], 0.6, True), ([0, 1, 2, 3], 0.8, True)), "beauty")
    assert "to tell" not in controlled and "| 75.0% |" in controlled
    plan = plan_text(profile, suggestion(profile), "a\nname: b")
    (stage,) = yaml.safe_load(plan)
    assert (stage["keep"], stage["init"], stage["of"]) == ([0, 3], "base", "teacher")
    assert "keep: [0, 1, 3]  0.4800  96.0%  (first)" in plan and "distill" in plan


def test_runs_of_blocks_are_written_short() -> None:
    assert [spans(blocks) for blocks in ([], [2], [0, 1], [0, 1, 2, 5, 7, 8])] == [
        "",
        "2",
        "0-1",
        "0-2, 5, 7-8",
    ]
