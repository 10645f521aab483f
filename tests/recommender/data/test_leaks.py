"""What the data layer must not give away: held-out items in counts, and time in row numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recommender.data.config import DataConfig, SyntheticLog
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared

SYNTHETIC = DataConfig(source="synthetic", synthetic=SyntheticLog(users=1500, items=400))


def test_training_counts_hold_no_held_out_interaction(prepared_from: Callable[..., Prepared]) -> None:
    lines = [f"{user},{item}" for user in "uvw" for item in (*"abc", f"valid-{user}", f"test-{user}")]
    prepared = prepared_from("user_id,item_id", *lines)
    counts = prepared.train_counts(prepared.split("leave-one-out"))
    by_item = {item: int(counts[row]) for item, row in prepared.rows.items()}
    assert by_item == {item: 3 if item in "abc" else 0 for item in by_item} and counts[0] == 0


def test_training_counts_do_not_change_when_test_items_are_permuted(
    csv: Callable[..., Path], cache: Path
) -> None:
    rng = np.random.default_rng(0)
    kept = [[*rng.permutation(9), user] for user in range(9)]  # the last item of each is its test item
    counts = []
    for order in (np.arange(9), np.roll(np.arange(9), 4)):
        lines = [f"{user},{item}" for user in range(9) for item in (*kept[user][:-1], kept[order[user]][-1])]
        file = csv("log.csv", "user_id,item_id", *lines)
        config = DataConfig(interactions=file, min_user=1, min_item=1, duplicates="keep")
        prepared = prepare(config, cache)
        counts.append(prepared.train_counts(prepared.split("leave-one-out")))
    assert counts[0].tolist() == counts[1].tolist()


def hits_of_the_next_row_rule(prepared: Prepared) -> int:
    """How often 'the highest row of the history, plus one' is the held-out item."""
    users, positions = prepared.split("leave-one-out").targets("test")
    pairs = zip(users, positions, strict=True)
    return sum(
        int(prepared.history(user, position).max()) + 1 == prepared.history(user)[position]
        for user, position in pairs
    )


def test_the_next_row_rule_is_at_chance_on_the_synthetic_log(cache: Path) -> None:
    prepared = prepare(SYNTHETIC, cache)
    expected = prepared.n_users / prepared.n_items
    assert hits_of_the_next_row_rule(prepared) < expected + 4 * expected**0.5 + 1


def test_ids_in_the_order_of_the_log_would_leak_and_rows_do_not(
    csv: Callable[..., Path], cache: Path
) -> None:
    # Ids are given at first sight, walking user by user, as in public Amazon files.
    lines = [f"{user},{2 * user + step:05d}" for user in range(300) for step in range(5)]
    file = csv("log.csv", "user_id,item_id", *lines)
    config = DataConfig(interactions=file, min_user=1, min_item=1)
    prepared = prepare(config, cache)
    items = [prepared.catalogue["item_id"][int(row) - 1] for row in prepared.history(0)]
    assert int(items[-1]) == max(int(item) for item in items[:-1]) + 1  # the leak is there
    assert hits_of_the_next_row_rule(prepared) < 10  # of 300; without the permutation all 300
