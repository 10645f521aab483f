from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.data.filters import chronological, count_ties, k_core, without_repeats

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)
events = st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=40)


def columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = zip(*rows, strict=True)
    return np.array(first, np.int32), np.array(second, np.int32)


def k_core_by_definition(rows: list[tuple[int, int]], min_user: int, min_item: int) -> list[bool]:
    alive = [True] * len(rows)
    while True:
        users = Counter(user for (user, _), on in zip(rows, alive, strict=True) if on)
        items = Counter(item for (_, item), on in zip(rows, alive, strict=True) if on)
        after = [
            on and users[user] >= min_user and items[item] >= min_item
            for (user, item), on in zip(rows, alive, strict=True)
        ]
        if after == alive:
            return alive
        alive = after


@given(pairs, st.integers(1, 5), st.integers(1, 5))
def test_k_core_is_the_fix_point_of_its_definition(
    rows: list[tuple[int, int]], min_user: int, min_item: int
) -> None:
    users, items = columns(rows)
    assert k_core(users, items, min_user, min_item).tolist() == k_core_by_definition(rows, min_user, min_item)


@given(pairs, st.integers(1, 4), st.integers(1, 4))
def test_k_core_of_a_k_core_keeps_everything(
    rows: list[tuple[int, int]], min_user: int, min_item: int
) -> None:
    users, items = columns(rows)
    core = k_core(users, items, min_user, min_item)
    assert not core.any() or k_core(users[core], items[core], min_user, min_item).all()


def test_k_core_iterates_when_one_removal_starves_the_next() -> None:
    # Item 2 has one interaction; without it user 1 has one; without that item 1 has one, and so on.
    users, items = columns([(0, 0), (0, 1), (1, 1), (1, 2)])
    assert not k_core(users, items, 2, 2).any()


@given(events)
def test_chronological_order_is_stable(rows: list[tuple[int, int]]) -> None:
    users, times = columns(rows)
    expected = sorted(range(len(rows)), key=lambda index: (rows[index][0], rows[index][1]))
    assert chronological(users, times).tolist() == expected
    assert chronological(users, times.astype(np.float64)).tolist() == expected


@given(events)
def test_chronological_order_without_a_key_keeps_the_file_order_of_each_user(
    rows: list[tuple[int, int]],
) -> None:
    users, _ = columns(rows)
    assert chronological(users, None).tolist() == sorted(range(len(rows)), key=lambda index: rows[index][0])


def test_chronological_order_holds_when_user_and_time_do_not_fit_into_one_integer() -> None:
    users = np.array([1, 0, 1, 0], np.int32)
    times = np.array([2**62, 5, -(2**62), -(2**62)], np.int64)
    assert chronological(users, times).tolist() == [3, 1, 2, 0]


def test_ties_are_counted_inside_a_user_only() -> None:
    users, times = columns([(0, 1), (0, 1), (0, 2), (1, 2), (1, 2), (1, 2)])
    assert count_ties(users, times) == 3


@pytest.mark.parametrize("keep", ["first", "last"])
@given(rows=pairs)
def test_one_of_each_repeated_pair_is_kept(rows: list[tuple[int, int]], keep: str) -> None:
    users, items = columns(rows)
    mask = without_repeats(users, items, "first" if keep == "first" else "last")
    numbered = enumerate(rows) if keep == "last" else reversed(list(enumerate(rows)))
    assert sorted(np.flatnonzero(mask)) == sorted({pair: index for index, pair in numbered}.values())
