"""Ids become rows, users come in exact batches, and padded arrays keep within their room."""

from itertools import accumulate, pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.score import known
from export.score.known import Batch, Catalogue, Duplicates, batches, calls
from export.score.read import Histories

PAST = st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=25)


def batch_of(pasts: list[list[int]], first: int = 0) -> Batch:
    users = pl.Series([f"u{first + n}" for n in range(len(pasts))], dtype=pl.String)
    rows = np.array([row for past in pasts for row in past], np.int64)
    return Batch(users, rows, np.array([len(past) for past in pasts], np.int64))


def pasts_of(batch: Batch) -> dict[str, list[int]]:
    edges = [0, *accumulate(batch.lengths.tolist())]
    return {
        user: batch.rows[edges[n] : edges[n + 1]].tolist() for n, user in enumerate(batch.users.to_list())
    }


@given(
    pasts=PAST, size=st.integers(1, 9), skip=st.integers(0, 30), cuts=st.lists(st.integers(0, 25), max_size=4)
)
def test_batches_have_their_size_and_hold_every_user_once_in_order(
    pasts: list[list[int]], size: int, skip: int, cuts: list[int]
) -> None:
    places = sorted({0, len(pasts), *(min(cut, len(pasts)) for cut in cuts)})
    pieces = [batch_of(pasts[a:b], a) for a, b in pairwise(places)]
    found = list(batches(pieces, size, skip))
    assert [len(batch.users) for batch in found[:-1]] == [size] * (len(found) - 1)
    assert all(0 < len(batch.users) <= size for batch in found)
    told = [pair for batch in found for pair in pasts_of(batch).items()]
    assert told == [(f"u{n}", past) for n, past in enumerate(pasts)][skip:]


@given(pasts=PAST, cells=st.integers(1, 40), max_length=st.integers(1, 7), mask=st.booleans())
def test_calls_hold_every_user_with_a_history_left_padded_within_their_room(
    pasts: list[list[int]], cells: int, max_length: int, mask: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "SEEN_CELLS", cells)
        found = list(calls(batch_of(pasts), max_length, mask_seen=mask))
    told: dict[int, list[int]] = {}
    for places, arrays in found:
        assert arrays.items.shape[1] <= max_length
        assert (arrays.seen is not None) == mask
        if arrays.seen is not None:
            assert arrays.seen.size <= max(cells, arrays.seen.shape[1])
            for place, seen in zip(places.tolist(), arrays.seen.tolist(), strict=True):
                assert [row for row in seen if row] == pasts[place]
        for place, items in zip(places.tolist(), arrays.items.tolist(), strict=True):
            told[place] = [row for row in items if row]
            assert items == [0] * (len(items) - len(told[place])) + told[place]
    assert told == {n: past[-max_length:] for n, past in enumerate(pasts) if past}


@pytest.mark.parametrize(
    ("duplicates", "rows"), [("keep", [2, 1, 2, 3]), ("first", [2, 1, 3]), ("last", [1, 2, 3])]
)
def test_known_items_become_rows_and_strange_ones_are_counted(
    duplicates: Duplicates, rows: list[int]
) -> None:
    items = ["b", "a", "x", "b", None, "c", "x", "y", None, "c"]
    found = Histories(pl.Series(["u", "v", "w", "z"]), pl.Series(items), np.array([6, 1, 2, 1]))
    batch, strange = Catalogue(["a", "b", "c"]).rows_of(found, duplicates)
    assert pasts_of(batch) == {"u": rows, "v": [], "w": [], "z": [3]}
    assert (strange.ids.to_list(), strange.users, strange.missing) == (["x", "x", "y"], 3, 2)


def test_a_piece_without_any_interaction_is_fine() -> None:
    found = Histories(pl.Series(["u"]), pl.Series([], dtype=pl.String), np.array([0]))
    batch, strange = Catalogue(["a"]).rows_of(found, "first")
    assert pasts_of(batch) == {"u": []} and strange.users == 0
    assert not list(calls(batch, 5, mask_seen=True))
