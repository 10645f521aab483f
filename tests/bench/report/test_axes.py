import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.axes import linear_axis, log_axis, short

positive = st.floats(1e-3, 1e7, allow_nan=False)


@given(st.lists(positive, min_size=1, max_size=5))
def test_a_log_axis_holds_all_values_between_its_ends(values: list[float]) -> None:
    axis = log_axis(values, 50, 390)
    assert all(50 - 1e-6 <= axis.place(value) <= 390 + 1e-6 for value in values)
    assert 1 <= len(axis.ticks) <= 6


def test_what_is_not_positive_lies_at_the_start_of_a_log_axis() -> None:
    axis = log_axis([0, 10, 100], 50, 390)
    assert axis.place(0) == axis.place(-3) == 50 and axis.ticks[0] == 10
    assert log_axis([0], 50, 390).place(0) == 50


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), st.sampled_from([0.0, 0.1]))
def test_linear_ticks_are_few_even_and_inside(values: list[float], room: float) -> None:
    axis = linear_axis(values, 300, 20, room=room)
    assert 2 <= len(axis.ticks) <= 6
    steps = [after - before for before, after in pairwise(axis.ticks)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    assert all(20 - 1e-3 <= axis.place(value) <= 300 + 1e-3 for value in (*axis.ticks, *values))


def test_room_is_left_free_on_both_sides() -> None:
    axis = linear_axis([0, 10], 0, 120, room=0.1)
    assert (axis.place(0), axis.place(10)) == pytest.approx((10, 110))


def test_many_log_ticks_are_thinned_to_powers_of_ten() -> None:
    assert log_axis([1, 900_000], 0, 1).ticks == pytest.approx([1, 100, 10_000, 1_000_000])
    assert log_axis([1, 90], 0, 1, most=9).ticks == pytest.approx([1, 2, 5, 10, 20, 50, 100])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.05, "0.05"),
        (20, "20"),
        (5000, "5k"),
        (2e6, "2M"),
        (0.30000000000000004, "0.3"),
        (-1e-17, "0"),
        (3e9, "3G"),
    ],
)
def test_ticks_read_well(value: float, said: str) -> None:
    assert short(value) == said
