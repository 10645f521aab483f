"""Interactions of equal time: shuffled on demand, only they, and only where times tell which they are."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.data.config import DataConfig
from recommender.data.filters import chronological
from recommender.data.log import Log, encode
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared
from recommender.data.ties import tie_noise
from recommender.errors import InputError
from tests.recommender.data.conftest import histories

Make = Callable[..., Prepared]
TIMED = "user_id,item_id,timestamp"
DAY = 86400
NOISE = [8478890782569790856, 13742010031661977052]
"""Of seed 0, user u, item a at second 1 and item b at second 7; worked out with Python's integers."""


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60), st.integers(0, 9))
def test_only_ties_are_permuted(events: list[tuple[int, int]], seed: int) -> None:
    users, times = (np.array(column) for column in zip(*events, strict=True))
    plain = chronological(users.astype(np.int32), times)
    noise = np.random.default_rng(seed).integers(3, size=len(users), dtype=np.uint64)
    shuffled = chronological(users.astype(np.int32), times, noise)
    assert sorted(shuffled.tolist()) == list(range(len(users)))
    assert users[shuffled].tolist() == users[plain].tolist()
    assert times[shuffled].tolist() == times[plain].tolist()

    def groups(order: Any) -> list[list[int]]:
        return [sorted(group) for _, group in groupby(order.tolist(), key=lambda i: (users[i], times[i]))]

    assert groups(shuffled) == groups(plain)


def test_a_log_without_ties_is_the_same_shuffled_or_not(prepared_from: Make) -> None:
    lines = (TIMED, *(f"{user},{item},{user * 7 + item}" for user in range(4) for item in range(6)))
    plain, shuffled = prepared_from(*lines), prepared_from(*lines, shuffle_ties=3)
    assert histories(plain) == histories(shuffled) and plain.digest == shuffled.digest


def test_ties_are_shuffled_before_the_split_and_are_part_of_the_digest(prepared_from: Make) -> None:
    lines = (TIMED, *(f"{user},{item},{item // 3}" for user in range(30) for item in range(9)))
    logs = [prepared_from(*lines, shuffle_ties=seed) for seed in (None, 0, 1)]
    assert len({log.digest for log in logs}) == 3 == len({log.path for log in logs})
    last = [{history[-1] for history in histories(log).values()} for log in logs]
    assert last[0] == {"8"} and last[1] == last[2] == {"6", "7", "8"}
    assert prepared_from(*lines, shuffle_ties=1).digest == logs[2].digest


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=60),
       st.integers(0, 60))  # fmt: skip
def test_a_longer_log_shuffles_what_it_had_before_as_before(
    events: list[tuple[int, int, int]], cut: int
) -> None:
    def order(some: list[tuple[int, int, int]]) -> list[tuple[str, str, int]]:
        frame = pl.DataFrame(some, schema=["user", "item", "time"], orient="row")
        (users, user_ids), (items, item_ids) = (encode(frame[name]) for name in ("user", "item"))
        log = Log(users, items, user_ids, item_ids, time=frame["time"].to_numpy())
        log = log.take(chronological(users, log.time, tie_noise(log, 5)))
        assert log.time is not None
        return [
            (user_ids[int(user)], item_ids[int(item)], int(time))
            for user, item, time in zip(log.users, log.items, log.time, strict=True)
        ]

    today, yesterday = order(events), order(events[:cut] or events[:1])
    left = Counter(yesterday)  # today's order with today's additions taken out
    kept = [event for event in today if left[event] > 0 and not left.subtract([event])]
    assert kept == yesterday


def test_what_was_trained_on_yesterday_is_not_held_out_in_a_grown_log(prepared_from: Make) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{user},{item},{place // 4}" for user in range(40)
            for place, item in enumerate(rng.permutation(30)[:12])]  # fmt: skip
    grown = [*rows, *(f"{user},{30 + user % 3},{2 + user % 2}" for user in range(0, 60, 3))]
    before, after = (histories(prepared_from(TIMED, *some, shuffle_ties=1)) for some in (rows, grown))
    for user, history in before.items():
        assert not {*history[:-2]} & {*after[user][-2:]}


def test_the_noise_is_the_same_on_every_machine() -> None:
    one = Log(np.zeros(2, np.int32), np.array([0, 1], np.int32), pl.Series(["u"]), pl.Series(["a", "b"]),
              time=np.array([1.5, 7.0]))  # fmt: skip
    assert tie_noise(one, 0).tolist() == NOISE
    assert tie_noise(replace(one, time=np.array([1, 7])), 0).tolist() == NOISE
    assert not set(tie_noise(one, 1).tolist()) & set(NOISE)


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        ("user_id,item_id,position", {"shuffle_ties": 1}, "this log has no times"),
        ("user_id,item_id,position", {"time_resolution": DAY}, "this log has no times"),
        ("user_id,item_id,timestamp", {"shuffle_ties": 1, "order_by": "file"}, "is ordered by file"),
    ],
)
def test_ties_that_nobody_can_know_are_refused(
    prepared_from: Make, header: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepared_from(header, "1,a,1", "1,b,1", **settings)
    assert "log.csv" in str(caught.value) and "data.columns.time" in str(caught.value)


def test_a_resolution_of_days_forgets_the_time_of_day(prepared_from: Make) -> None:
    lines = (TIMED, f"1,c,{2 * DAY + 5}", f"1,b,{DAY + 9}", f"1,a,{DAY + 1}", "1,z,-3")
    fine, coarse = prepared_from(*lines), prepared_from(*lines, time_resolution=DAY)
    assert histories(fine) == {"1": ["z", "a", "b", "c"]}
    assert histories(coarse) == {"1": ["z", "b", "a", "c"]}  # a and b: one day, so file order
    assert coarse.times is not None and coarse.times.tolist() == [-DAY, DAY, DAY, 2 * DAY]
    assert (fine.meta["ties"], coarse.meta["ties"]) == (0, 1)


def test_a_resolution_holds_for_times_with_a_fraction(prepared_from: Make) -> None:
    lines = (TIMED, "1,b,7900", "1,a,7100", "1,c,9000")
    prepared = prepared_from(*lines, columns={"time_unit": "ms"}, time_resolution=2)
    assert histories(prepared) == {"1": ["b", "a", "c"]}
    assert prepared.times is not None and prepared.times.tolist() == [6, 6, 8]


def test_original_files_bring_the_times_that_a_shuffle_needs(tmp_path: Path) -> None:
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join(f"1::{item}::5::978300760\n" for item in range(1, 21)))
    (folder / "movies.dat").write_text("".join(f"{item}::Film {item}::Drama\n" for item in range(1, 21)))
    orders = []
    for seed in (None, 1):
        config = {"source": "ml-1m", "root": tmp_path, "min_user": 1, "min_item": 1, "shuffle_ties": seed}
        orders.append(histories(prepare(DataConfig.model_validate(config), tmp_path / "cache"))["1"])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
