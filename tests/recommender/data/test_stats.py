from collections.abc import Callable

import numpy as np
import pytest

from recommender.data.prepared import Prepared
from recommender.data.stats import gini, stats


def test_stats_of_a_log_that_one_can_count_by_hand(prepared_from: Callable[..., Prepared]) -> None:
    lines = ("user_id,item_id,timestamp", "1,a,1", "1,b,1", "1,a,2", "2,a,5", "2,c,6")
    numbers = stats(prepared_from(*lines, duplicates="keep"))
    expected = {"users": 2, "items": 3, "interactions": 5, "has_time": True, "order_by": "time"}
    assert {key: numbers[key] for key in expected} == expected
    assert numbers["density"] == pytest.approx(5 / 6)
    assert numbers["history_length"] == {
        "min": 2,
        "mean": 2.5,
        "median": 2.5,
        "p95": pytest.approx(2.95),
        "max": 3,
    }
    assert numbers["interactions_of_item"] == {"min": 1, "median": 1.0, "max": 3}
    assert numbers["top_1_percent"] == pytest.approx(3 / 5)
    assert numbers["tie_share"] == pytest.approx(1 / 3)  # one tie among three neighbours
    assert numbers["last_tie_share"] == 0.0
    assert numbers["repeat_share"] == pytest.approx(1 / 5)
    assert numbers["titled_share"] == 0.0


def test_last_ties_are_users_whose_held_out_item_is_a_matter_of_file_order(
    prepared_from: Callable[..., Prepared],
) -> None:
    lines = ("1,a,1", "1,b,7", "1,c,7", "2,a,3", "2,b,3", "2,c,4", "3,a,1", "4,b,2", "4,c,2")
    assert stats(prepared_from("user_id,item_id,timestamp", *lines))["last_tie_share"] == 2 / 4
    assert "last_tie_share" not in stats(prepared_from("user_id,item_id,position", *lines))


def test_gini_is_zero_for_equals_and_nearly_one_for_a_monopoly() -> None:
    assert gini(np.array([4, 4, 4, 4])) == pytest.approx(0)
    assert gini(np.array([0] * 99 + [7])) == pytest.approx(0.99)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
