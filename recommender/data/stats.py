"""Numbers that describe a prepared data set before anyone trains on it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.data.prepared import Prepared


def stats(prepared: Prepared) -> dict[str, Any]:
    """Counts, density, history lengths, ties, repeats, and how unequal the items' popularity is.

    `gini`: 0 when all items are equally popular, towards 1 when one has everything. `top_1_percent`: share of
    all interactions that the most popular 1% of the catalogue (at least one item) has. `tie_share`: share of
    neighbours in a history with equal time; `last_tie_share`, where there are times: share of users whose
    last two interactions have equal time, so that file order decides what is held out. `repeat_share`: share
    of interactions with an item that the user had before.
    """
    lengths = prepared.lengths()
    counts = np.sort(np.bincount(prepared.items, minlength=prepared.n_items + 1)[1:])
    total, neighbours = len(prepared.items), len(prepared.items) - prepared.n_users
    top = max(1, round(prepared.n_items / 100))
    return {
        "name": prepared.meta["name"],
        "users": prepared.n_users,
        "items": prepared.n_items,
        "interactions": total,
        "density": total / (prepared.n_users * prepared.n_items),
        "history_length": {
            "min": int(lengths.min()),
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "p95": float(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
        },
        "interactions_of_item": {
            "min": int(counts[0]),
            "median": float(np.median(counts)),
            "max": int(counts[-1]),
        },
        "gini": gini(counts),
        "top_1_percent": float(counts[-top:].sum() / total),
        "tie_share": prepared.meta["ties"] / neighbours if neighbours else 0.0,
        **_last_ties(prepared),
        "repeat_share": _repeats(prepared) / total,
        "duplicates_dropped": prepared.meta["duplicates_dropped"],
        "titled_share": float(np.mean(prepared.catalogue["title"].to_numpy() != "")),
        "has_time": prepared.meta["has_time"],
        "order_by": prepared.meta["order_by"],
    }


def gini(counts: NDArray[np.int64]) -> float:
    """Gini coefficient of ascending counts: 1 - 2 * (area under the Lorenz curve), trapezoids."""
    lorenz = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    return float(1 - (lorenz[1:] + lorenz[:-1]).sum() / len(counts))


def _last_ties(prepared: Prepared) -> dict[str, float]:
    if prepared.times is None:
        return {}
    last = np.asarray(prepared.offsets)[1:][prepared.lengths() >= 2] - 1
    tied = np.count_nonzero(prepared.times[last] == prepared.times[last - 1])
    return {"last_tie_share": float(tied / prepared.n_users)}


def _repeats(prepared: Prepared) -> int:
    users = np.repeat(np.arange(prepared.n_users, dtype=np.int64), prepared.lengths())
    pairs = np.sort(users * (prepared.n_items + 1) + prepared.items)
    return int(np.count_nonzero(pairs[1:] == pairs[:-1]))
