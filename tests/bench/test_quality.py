from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.quality import Judged, drawn_users, judge, key_metric, slices_of
from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared
from recommender.errors import StageError
from recommender.scoring import Scorer
from tests.bench.fakes import HISTORIES, tiny_log
from tests.bench.scorers import Fixed, TopOnly

UP, DOWN = list(range(1, 9)), list(range(8, 0, -1))
RANKS_UP, RANKS_DOWN = [0, 0, 1, 2, 0, 1], [4, 4, 3, 2, 2, 1]
EVALUATION = EvaluationConfig(ks=(1, 2, 5))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_log(tmp_path)


def judged(prepared: Prepared, *scorers: Scorer) -> Judged:
    seeds: Iterator[tuple[int, Scorer]] = enumerate(scorers)
    return judge(seeds, prepared, prepared.split("leave-one-out"), EVALUATION, max_length=4)


def test_metrics_follow_from_the_ranks(prepared: Prepared) -> None:
    found = judged(prepared, Fixed(UP))
    assert found.ranked.ranks.tolist() == RANKS_UP
    assert found.quality["hr@1"] == pytest.approx(3 / 6)
    assert found.quality["hr@2"] == pytest.approx(5 / 6)
    assert found.quality["ndcg@2"] == pytest.approx((3 + 2 / np.log2(3)) / 6)
    assert found.quality["mrr"] == pytest.approx(np.mean([1 / (rank + 1) for rank in RANKS_UP]))


def test_only_the_drawn_users_are_ranked(prepared: Prepared) -> None:
    split = prepared.split("leave-one-out")
    drawn = drawn_users(split, 4, seed=1)
    assert drawn is not None and len(drawn) == 4 and drawn_users(split, 6, seed=1) is None
    assert np.array_equal(drawn, np.asarray(drawn_users(split, 4, seed=1)))
    found = judge([(0, Fixed(UP))], prepared, split, EVALUATION, max_length=4, users=drawn)
    everyone = judged(prepared, Fixed(UP))
    assert found.users.tolist() == drawn.tolist()
    kept = np.isin(everyone.users, drawn)
    assert found.ranked.ranks.tolist() == everyone.ranked.ranks[kept].tolist()


def test_a_scorer_of_lists_has_the_same_quality_but_no_mrr(prepared: Prepared) -> None:
    exact, lists = judged(prepared, Fixed(DOWN)).quality, judged(prepared, TopOnly(DOWN)).quality
    assert "mrr" in exact and "mrr" not in lists
    assert lists == {name: value for name, value in exact.items() if name != "mrr"}


def test_users_are_averaged_over_seeds_before_anything_else(prepared: Prepared) -> None:
    found = judged(prepared, Fixed(UP), Fixed(DOWN))
    expected = [((up < 2) + (down < 2)) / 2 for up, down in zip(RANKS_UP, RANKS_DOWN, strict=True)]
    assert found.per_user["hr@2"].tolist() == expected
    assert [found.by_seed[seed]["hr@2"] for seed in (0, 1)] == pytest.approx([5 / 6, 1 / 6])
    assert found.quality["hr@2"] == pytest.approx(3 / 6)


def test_a_metric_that_one_seed_lacks_is_left_out(prepared: Prepared) -> None:
    assert "mrr" not in judged(prepared, Fixed(UP), TopOnly(UP)).quality


def test_coverage_counts_what_all_lists_show(prepared: Prepared) -> None:
    """Lists hold what a user has not seen: 4-8, then 3 5-8, 4-8, 4-8, 6-8, 6-8: 26 places, 6 items."""
    found = judged(prepared, Fixed(UP)).coverage
    assert found["items@8"] == 6
    assert found["catalogue@8"] == pytest.approx(6 / 8)
    assert found["tail@8"] == pytest.approx(4 / 26)  # items 3 and 4
    assert found["cold@8"] == pytest.approx(22 / 26)
    assert found["head@8"] == found["middle@8"] == 0


def test_slices_are_of_whole_histories_and_of_popularity_in_training(prepared: Prepared) -> None:
    found = judged(prepared, Fixed(UP))
    slices = {
        (each.by, each.bin): each for each in slices_of(prepared, prepared.split("leave-one-out"), found)
    }
    assert {key: each.rows.tolist() for key, each in slices.items()} == {
        ("history", "1-3"): [0, 1, 2, 3],
        ("history", "4-5"): [4, 5],  # max_length is 4: what a model reads has no say
        ("popularity", "tail"): [0, 1],
        ("popularity", "cold"): [2, 3, 4, 5],
    }
    assert found.slice_quality(slices["history", "1-3"])["hr@1"] == pytest.approx(2 / 4)
    assert found.slice_quality(slices["popularity", "cold"])["hr@1"] == pytest.approx(1 / 4)


def test_slices_weighted_by_users_give_the_mean_of_all(prepared: Prepared) -> None:
    found = judged(prepared, Fixed(DOWN))
    slices = slices_of(prepared, prepared.split("leave-one-out"), found)
    for by in ("history", "popularity"):
        parts = [each for each in slices if each.by == by]
        assert sum(len(each.rows) for each in parts) == len(HISTORIES)
        total = sum(len(each.rows) * found.slice_quality(each)["mrr"] for each in parts)
        assert total / len(HISTORIES) == pytest.approx(found.quality["mrr"])


def test_no_seed_at_all_is_an_error(prepared: Prepared) -> None:
    with pytest.raises(StageError, match="no seed"):
        judged(prepared)


def test_the_key_metric_is_ndcg_at_10_or_at_the_largest_cut_off() -> None:
    assert key_metric((1, 5, 10, 20)) == "ndcg@10"
    assert key_metric((1, 5)) == "ndcg@5"
