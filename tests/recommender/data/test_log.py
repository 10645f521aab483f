import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.data.log import Log, category, encode


@given(st.lists(st.text(max_size=4), min_size=1, max_size=40))
def test_encode_gives_back_the_strings_and_an_ascending_table(ids: list[str]) -> None:
    codes, table = encode(pl.Series(ids, dtype=pl.String))
    assert table.gather(codes).to_list() == ids
    assert table.to_list() == sorted(set(ids))


@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(-5, 5), min_size=1, max_size=40))
def test_encode_of_integers_is_encode_of_their_text(numbers: list[int]) -> None:
    codes, table = encode(pl.Series(numbers, dtype=pl.Int64))
    assert table.gather(codes).to_list() == [str(number) for number in numbers]
    assert table.to_list() == sorted({str(number) for number in numbers})


def test_encode_ignores_categories_that_the_column_does_not_use() -> None:
    column = pl.Series(["x", "b", "y", "a", "b"], dtype=category()).gather([1, 3, 4])
    codes, table = encode(column)
    assert (codes.tolist(), table.to_list()) == ([1, 0, 1], ["a", "b"])


@pytest.mark.parametrize("index", [np.array([True, False, True]), np.array([0, 2])])
def test_take_selects_every_column(index: np.ndarray) -> None:
    ids = pl.Series(["a", "b", "c"])
    numbers = np.arange(3, dtype=np.int32)
    log = Log(numbers, numbers, ids, ids, time=numbers * 10.0, rating=numbers * 1.0).take(index)
    assert log.users.tolist() == [0, 2] and log.items.tolist() == [0, 2]
    assert log.time is not None and log.time.tolist() == [0.0, 20.0]
    assert log.position is None
