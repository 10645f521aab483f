import pytest

from bench.report import wording
from bench.report.depth_tables import block_table, cut_table, depth_metric, depth_table, ranges
from recommender.profile import DepthProfile
from tests.bench.report.full import full_report
from tests.bench.report.test_quality_tables import row


@pytest.fixture(scope="module")
def profile() -> DepthProfile:
    return (full_report().sections.depth_profile or [])[0]


def test_each_block_has_its_influence_and_its_turn_to_go(profile: DepthProfile) -> None:
    table = block_table(profile)
    assert row(table, "5") == {
        "block": "5", "influence": "0.0470", "removed as number": "1", "loss then": "7.1300",
    }  # fmt: skip
    assert row(table, "0")["removed as number"] == wording.ABSENT
    assert "7.0800" in table.note


def test_the_cheapest_cut_of_each_length_is_named_by_its_blocks(profile: DepthProfile) -> None:
    assert row(cut_table(profile), "3") == {"blocks that go": "3", "which": "3-5", "distance": "0.0860"}
    assert len(cut_table(profile).rows) == 7


def test_depths_stand_with_and_without_training(profile: DepthProfile) -> None:
    table = depth_table(full_report(), profile)
    assert [(cells[0].text, cells[1].text) for cells in table.rows[:2]] == [
        ("1", "cut only"),
        ("1", "trained again"),
    ]
    assert row(table, "4")["which"] == "0-2, 7"
    assert "chosen by" not in table.header


def test_what_chose_the_blocks_and_started_the_training_is_told_where_it_is_known(
    profile: DepthProfile,
) -> None:
    known = [each.model_copy(update={"order": "greedy", "init": "teacher"}) for each in profile.depths]
    table = depth_table(full_report(), profile.model_copy(update={"depths": known, "validation_users": 1500}))
    assert table.rows[1][1].text == "trained again from teacher" and table.rows[1][2].text == "greedy"
    assert "1,500 users" in table.note


def test_a_profile_without_the_key_metric_shows_one_that_it_has(profile: DepthProfile) -> None:
    other = [each.model_copy(update={"quality": {"mrr": 0.1}}) for each in profile.depths]
    assert depth_metric(full_report(), profile) == "ndcg@10"
    assert depth_metric(full_report(), profile.model_copy(update={"depths": other})) == "mrr"


@pytest.mark.parametrize(
    ("numbers", "said"), [([0, 1, 2, 3, 7, 9, 10], "0-3, 7, 9-10"), ([5], "5"), ([], ""), ([0, 1], "0-1")]
)
def test_blocks_are_named_in_runs(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said
