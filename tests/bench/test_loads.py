from pathlib import Path

import numpy as np
import pytest

from bench.loads import Load, LoadName, make_load
from recommender.data.prepared import Prepared
from tests.bench.fakes import HISTORIES, tiny_log


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_log(tmp_path)


def load(
    prepared: Prepared, name: LoadName, *, batch: int = 3, rounds: int = 20, mask_seen: bool = True
) -> Load:
    split = prepared.split("leave-one-out")
    return make_load(
        name, prepared, split, batch=batch, rounds=rounds, max_length=4, seed=0, mask_seen=mask_seen
    )


def test_full_histories_have_no_padding(prepared: Prepared) -> None:
    found = load(prepared, "full")
    assert {each.items.shape for each in found.batches} == {(3, 4)}
    assert all((each.items > 0).all() and (each.items <= 8).all() for each in found.batches)
    assert found.length == 4


def test_real_histories_are_those_before_the_test_item_with_the_whole_past_as_seen(
    prepared: Prepared,
) -> None:
    known = {tuple(history[:-1][-4:]): set(history[:-1]) for history in HISTORIES}
    for each in load(prepared, "real").batches:
        assert each.seen is not None
        for items, seen in zip(each.items, each.seen, strict=True):
            assert set(seen[seen > 0]) == known[tuple(items[items > 0])]


def test_seen_is_left_out_when_it_is_not_masked(prepared: Prepared) -> None:
    for name in ("full", "real"):
        assert all(each.seen is None for each in load(prepared, name, mask_seen=False).batches)


def test_small_batches_come_from_many_users_and_never_more_than_are_used(prepared: Prepared) -> None:
    assert len(load(prepared, "real", batch=1, rounds=100).batches) == 100
    assert len(load(prepared, "real", batch=256, rounds=100).batches) == 8
    assert len(load(prepared, "real", batch=256, rounds=2).batches) == 2


def test_the_mean_length_counts_items_and_not_padding() -> None:
    from recommender.scoring import HistoryArrays

    batches = [HistoryArrays(np.array([[0, 0, 5], [1, 2, 3]])), HistoryArrays(np.array([[1], [1]]))]
    assert Load("real", 2, batches).length == pytest.approx(1.5)
