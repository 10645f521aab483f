from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.data.config import TemporalSplit
from recommender.data.prepared import Prepared
from recommender.data.splits import leave_one_out, temporal
from recommender.errors import InputError
from tests.recommender.data.conftest import histories

Make = Callable[..., Prepared]


def test_leave_one_out_of_five_trains_on_three(prepared_from: Make) -> None:
    prepared = prepared_from("user_id,item_id", *(f"1,{item}" for item in "abcde"))
    split = prepared.split("leave-one-out")
    whole = histories(prepared)["1"]
    assert whole[: split.train_end[0]] == ["a", "b", "c"]
    assert (whole[split.valid[0]], whole[split.test[0]]) == ("d", "e")
    assert prepared.history(0, int(split.valid[0])).tolist() == [prepared.rows[item] for item in "abc"]
    assert prepared.history(0, int(split.test[0])).tolist() == [prepared.rows[item] for item in "abcd"]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_leave_one_out_holds_out_two_and_never_trains_on_them(lengths: list[int]) -> None:
    if max(lengths) < 3:
        with pytest.raises(InputError, match="fewer than 3 interactions"):
            leave_one_out(np.array(lengths))
        return
    split = leave_one_out(np.array(lengths))
    for number, length in enumerate(lengths):
        evaluated = length >= 3
        assert split.train_end[number] == (length - 2 if evaluated else length)
        assert split.valid[number] == (length - 2 if evaluated else -1)
        assert split.test[number] == (length - 1 if evaluated else -1)
    users, positions = split.targets("test")
    assert users.tolist() == [number for number, length in enumerate(lengths) if length >= 3]
    assert positions.tolist() == [lengths[number] - 1 for number in users]


def test_a_temporal_split_cuts_all_users_at_the_same_time(prepared_from: Make) -> None:
    early = [f"u{user},i{item},{10 * item}" for user in range(4) for item in range(8)]
    prepared = prepared_from("user_id,item_id,timestamp", *early, "late,i1,75")
    split = prepared.split(TemporalSplit(temporal=0.5))
    assert prepared.times is not None
    trained = np.arange(len(prepared.items)) - np.repeat(prepared.offsets[:-1], prepared.lengths())
    trained = trained < np.repeat(split.train_end, prepared.lengths())
    users, positions = split.targets("valid")
    valid_times = prepared.times[prepared.offsets[users] + positions]
    users, positions = split.targets("test")
    test_times = prepared.times[prepared.offsets[users] + positions]
    assert prepared.times[trained].max() < valid_times.min() <= valid_times.max() < test_times.min()
    assert split.test[prepared.user_ids.to_list().index("late")] == -1  # no history before the point in time


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=8),
    st.floats(0.1, 0.9),
)
def test_a_temporal_split_never_holds_out_what_it_trains_on(times: list[list[int]], share: float) -> None:
    offsets = np.cumsum([0, *(len(user) for user in times)])
    flat = np.array([time for user in times for time in sorted(user)])
    try:
        split = temporal(offsets, flat, share)
    except InputError:
        return
    for part in (split.valid, split.test):
        held = part >= 0
        assert (part[held] >= split.train_end[held]).all() and (part[held] < np.diff(offsets)[held]).all()
        assert (part[held] > 0).all()  # there is a history
    both = (split.valid >= 0) & (split.test >= 0)
    assert (split.valid[both] < split.test[both]).all()


def test_a_temporal_split_of_ten_seconds_trains_on_the_first_eight() -> None:
    split = temporal(np.array([0, 10]), np.arange(10), 0.8)
    assert (split.train_end.tolist(), split.valid.tolist(), split.test.tolist()) == ([8], [8], [9])


def test_interactions_at_the_cut_itself_are_not_trained_on() -> None:
    split = temporal(np.array([0, 2, 6]), np.array([0, 5, 0, 5, 6, 7]), 0.5)  # cuts at 5 and 6
    assert (split.train_end.tolist(), split.valid.tolist(), split.test.tolist()) == ([1, 1], [1, 1], [-1, 2])


def test_a_temporal_split_needs_times(prepared_from: Make) -> None:
    prepared = prepared_from("user_id,item_id", "1,a", "1,b", "1,c")
    with pytest.raises(InputError, match="has no timestamps"):
        prepared.split(TemporalSplit(temporal=0.8))


def test_a_temporal_split_without_anyone_to_evaluate_is_refused(prepared_from: Make) -> None:
    prepared = prepared_from("user_id,item_id,timestamp", "1,a,1", "2,b,2", "3,c,3")
    with pytest.raises(InputError, match="leaves no user"):
        prepared.split(TemporalSplit(temporal=0.5))
