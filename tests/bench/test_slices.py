import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.slices import SHELVES, coverage, gini, length_label, members, shelves


def names(counts: list[int]) -> list[str]:
    return [SHELVES[shelf] for shelf in shelves(np.array([0, *counts]))[1:]]


def test_shelves_are_the_top_fifth_the_next_three_tenths_and_the_other_half() -> None:
    assert names([100, 90, 80, 70, 60, 50, 40, 30, 20, 10]) == ["head"] * 2 + ["middle"] * 3 + ["tail"] * 5


def test_items_that_never_occur_in_training_are_cold_and_do_not_shift_the_others() -> None:
    assert names([100, 90, 0, 80, 70, 60, 0, 50, 40, 30, 20, 10, 0])[2::4] == ["cold", "cold", "tail"]
    assert names([5, 0, 0, 0]) == ["head", "cold", "cold", "cold"]


def test_items_of_equal_count_share_a_shelf() -> None:
    assert names([9, 7, 7, 7, 7, 1, 1, 1, 1, 1]) == ["head"] * 5 + ["tail"] * 5


def test_length_bins_meet_without_gap_or_overlap() -> None:
    found = members(np.arange(1, 500), np.zeros(499, dtype=np.int64))
    lengths = [each for each in found if each.by == "history"]
    assert [each.bin for each in lengths] == [
        "1-3",
        "4-5",
        "6-9",
        "10-19",
        "20-49",
        "50-99",
        "100-199",
        "200+",
    ]
    assert [len(each.rows) for each in lengths] == [3, 2, 4, 10, 30, 50, 100, 300]
    assert length_label(0) == "1-3"


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=60))
def test_each_partition_holds_every_user_once(users: list[tuple[int, int]]) -> None:
    found = members(np.array([u[0] for u in users]), np.array([u[1] for u in users]))
    for by in ("history", "popularity"):
        rows = np.concatenate([each.rows for each in found if each.by == by])
        assert sorted(rows) == list(range(len(users)))
        assert all(len(each.rows) for each in found)


def test_coverage_by_hand() -> None:
    top = np.array([[1, 2], [1, 3], [1, 0]])  # row 0: a list that was not filled
    shelf = np.array([3, 0, 1, 2, 3])
    found = coverage(top, shelf)
    assert found["items@2"] == 3
    assert found["catalogue@2"] == pytest.approx(3 / 4)
    assert [found[f"{name}@2"] for name in SHELVES] == pytest.approx([3 / 5, 1 / 5, 1 / 5, 0])
    # counts 3 1 1 0: sum over all pairs |x_i - x_j| = 2 * (2 + 2 + 3 + 0 + 1 + 1) = 18; 18 / (2 * 16 * 5/4)
    assert found["gini@2"] == pytest.approx(18 / 40)


def test_coverage_of_empty_lists_says_nothing_about_shares() -> None:
    found = coverage(np.zeros((2, 3), dtype=np.int64), np.array([3, 0]))
    assert found == {"items@3": 0.0, "catalogue@3": 0.0}


def test_gini_is_0_for_equal_counts_and_near_1_for_a_single_item() -> None:
    assert gini(np.full(10, 4)) == pytest.approx(0)
    assert gini(np.array([0] * 999 + [5])) == pytest.approx(0.999)
