"""Which users belong together: by length of the history, and by popularity of what came next.

Compression that is free on average may ruin the tail; slices make that visible.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

LENGTHS = (1, 4, 6, 10, 20, 50, 100, 200)
"""First length of each bin; the last one is open."""

SHELVES = ("head", "middle", "tail", "cold")
HEAD_SHARE, MIDDLE_SHARE = 0.2, 0.5


class Members(NamedTuple):
    """One slice: the rows (of the evaluated users) that are in it."""

    by: Literal["history", "popularity"]
    bin: str
    rows: Int64


def shelves(train_counts: Int64) -> Int64:
    """Which shelf each row stands on: index into `SHELVES`, [n_items + 1]; row 0 is cold.

    Items of the training part are ordered by how often they occur there. head: the most popular 20% of these
    items; middle: the next 30%; tail: the other half; cold: items that never occur in training. Items of
    equal count stand on the same shelf (the more popular one), so rows have no say.
    """
    warm = train_counts > 0
    ordered = np.sort(train_counts[warm])
    more_popular = len(ordered) - np.searchsorted(ordered, train_counts, side="right")
    share = more_popular / max(len(ordered), 1)
    shelf = np.where(share < HEAD_SHARE, 0, np.where(share < MIDDLE_SHARE, 1, 2))
    return np.where(warm, shelf, SHELVES.index("cold")).astype(np.int64)


def length_label(index: int) -> str:
    """'1-3', ..., '200+'."""
    first = LENGTHS[index]
    return f"{first}+" if index == len(LENGTHS) - 1 else f"{first}-{LENGTHS[index + 1] - 1}"


def members(history_lengths: Int64, target_shelves: Int64) -> list[Members]:
    """Both partitions of the evaluated users; bins that nobody is in are left out.

    `history_lengths` [n]: interactions before the held-out one (>= 1; all of them, not only those that a
    model reads). `target_shelves` [n]: the shelf of the held-out item.
    """
    bins = np.searchsorted(np.array(LENGTHS), history_lengths, side="right") - 1
    found = [Members("history", length_label(i), np.flatnonzero(bins == i)) for i in range(len(LENGTHS))]
    found += [
        Members("popularity", name, np.flatnonzero(target_shelves == i)) for i, name in enumerate(SHELVES)
    ]
    return [each for each in found if len(each.rows)]


def means(per_user: Mapping[str, Float64], rows: Int64 | None = None) -> dict[str, float]:
    """Mean of each metric over some rows (all by default)."""
    return {
        name: float(np.mean(values if rows is None else values[rows])) for name, values in per_user.items()
    }


def coverage(top: Int64, shelf: Int64) -> dict[str, float]:
    """What the lists of all users hold together, for lists of length k.

    `top` [n, k] rows (0 and below: no item), `shelf` [n_items + 1]. Returns items@k (distinct items),
    catalogue@k (their share of the catalogue), gini@k (Gini index over the whole catalogue, 0: every item
    equally often, 1: one item only), and head@k, middle@k, tail@k, cold@k: the share of recommended places
    that a shelf gets.
    """
    k, n_items = top.shape[1], len(shelf) - 1
    shown = np.bincount(top[top > 0], minlength=n_items + 1)[1:]
    places = int(shown.sum())
    found = {
        f"items@{k}": float(np.count_nonzero(shown)),
        f"catalogue@{k}": np.count_nonzero(shown) / n_items,
    }
    if places:
        found[f"gini@{k}"] = gini(shown)
        per_shelf = np.bincount(shelf[1:], weights=shown, minlength=len(SHELVES)) / places
        found |= {f"{name}@{k}": float(per_shelf[i]) for i, name in enumerate(SHELVES)}
    return found


def gini(counts: Int64) -> float:
    """Gini index of counts [n] with a positive sum: mean absolute difference / (2 x mean)."""
    ordered = np.sort(counts)
    n, rank = len(ordered), np.arange(1, len(ordered) + 1)
    return float(2 * (rank * ordered).sum() / (n * ordered.sum()) - (n + 1) / n)


def averaged(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each number that all runs have."""
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: float(np.mean([run[name] for run in runs])) for name in shared}
