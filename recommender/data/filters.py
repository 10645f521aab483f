"""Pure functions on interaction arrays: order, ties, repeats, k-core. They know neither files nor configs."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def chronological(users: Int32, key: NDArray[Any] | None, noise: NDArray[np.uint64] | None = None) -> Int64:
    """Positions [N] that sort interactions by user, then by `key`; equal keys keep their order (stable).

    `key` None keeps the order inside each user. `noise` [N] orders equal keys instead.
    """
    if key is None:
        return np.argsort(users, kind="stable")
    if noise is not None:
        return np.lexsort((noise, key, users))
    packed = _packed(users, key)
    # One sort of one key takes less than half of what lexsort needs.
    return np.lexsort((key, users)) if packed is None else np.argsort(packed, kind="stable")


def _packed(users: Int32, key: NDArray[Any]) -> Int64 | None:
    """User and key as one integer of the same order; None when they do not fit into 63 bits."""
    if not np.issubdtype(key.dtype, np.integer):
        return None
    low = int(key.min())
    bits = (int(key.max()) - low).bit_length()
    if bits + int(users.max()).bit_length() > 63:
        return None
    packed = users.astype(np.int64)
    packed <<= bits
    packed += key
    packed -= low
    return packed


def count_ties(users: Int32, key: NDArray[Any]) -> int:
    """Adjacent pairs of one user with an equal key, in sorted interactions."""
    return int(np.count_nonzero((users[1:] == users[:-1]) & (key[1:] == key[:-1])))


def without_repeats(users: Int32, items: Int32, keep: Literal["first", "last"]) -> Bool:
    """Mask [N] with one interaction of each (user, item) pair: the first or the last in the given order."""
    mask = np.ones(len(users), dtype=np.bool_)
    pair = users.astype(np.int64)
    pair *= int(items.max()) + 1
    pair += items
    ordered = np.sort(pair)
    if not (ordered[1:] == ordered[:-1]).any():  # the usual case, and much cheaper than the sort below
        return mask
    order = np.argsort(pair, kind="stable")
    ordered = pair[order]
    same = ordered[1:] == ordered[:-1]
    mask[(order[1:] if keep == "first" else order[:-1])[same]] = False
    return mask


def k_core(users: Int32, items: Int32, min_user: int, min_item: int) -> Bool:
    """Mask [N] of the largest sub-log in which every user and every item has its minimum of interactions.

    Iterated until nothing changes; the fix point is unique, so it does not matter which filter comes first.
    """
    alive = np.ones(len(users), dtype=np.bool_)
    index: Int64 | None = None
    while True:
        keep = (np.bincount(users) >= min_user)[users]
        keep &= (np.bincount(items) >= min_item)[items]
        if keep.all():
            return alive
        index = np.flatnonzero(keep) if index is None else index[keep]
        alive[:] = False
        alive[index] = True
        users, items = users[keep], items[keep]
