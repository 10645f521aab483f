"""Batches filled up to a few shapes, for what is compiled or recorded for each shape anew."""

import numpy as np

from recommender.scoring import HistoryArrays, Int64

LEAST_SEEN = 64


def padded(history: HistoryArrays, max_length: int) -> tuple[Int64, Int64]:
    """(items [B, max_length], seen [B, S]) of a shape that few other calls differ from; padding is 0.

    B is the next power of two, so there may be users without a history at the end.
    """
    users = power_of_two(len(history.items))
    items = np.zeros((users, max_length), dtype=np.int64)
    newest = history.items[:, -max_length:]
    items[: len(newest), max_length - newest.shape[1] :] = newest
    seen = np.zeros((users, seen_width(history)), dtype=np.int64)
    if history.seen is not None:
        seen[: len(history.seen), : history.seen.shape[1]] = history.seen
    return items, seen


def power_of_two(count: int) -> int:
    """The least one that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def seen_width(history: HistoryArrays) -> int:
    """Seen rows, up to 64 times a power of four."""
    width, needed = LEAST_SEEN, 0 if history.seen is None else history.seen.shape[1]
    while width < needed:
        width *= 4
    return width
