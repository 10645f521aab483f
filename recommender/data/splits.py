"""Held-out splits as positions inside each history."""

import numpy as np
from numpy.typing import NDArray

from recommender.data.prepared import Split
from recommender.errors import InputError

Int64 = NDArray[np.int64]


def leave_one_out(lengths: Int64) -> Split:
    """Last interaction = test, the one before = validation, the rest = training.

    Users with fewer than three interactions are trained on and never evaluated. Raises InputError when no
    user is left to evaluate.
    """
    long_enough = lengths >= 3
    if not long_enough.any():
        raise InputError(
            "every user has fewer than 3 interactions, so nothing can be held out (train, validation, test)",
            where="data",
            fix="lower data.min_item, or give a log with longer histories",
        )
    last = np.where(long_enough, lengths - 1, -1)
    return Split(
        train_end=np.where(long_enough, lengths - 2, lengths).astype(np.int64),
        valid=np.where(long_enough, lengths - 2, -1).astype(np.int64),
        test=last.astype(np.int64),
    )


def temporal(offsets: Int64, times: Int64, share: float) -> Split:
    """Train before a point in time; the first interaction of each user after it is held out.

    The point is the `share` quantile of all times; the rest is halved by quantile into validation and test.
    Only users with a history before the point in question are evaluated.
    """
    lengths = np.diff(offsets)
    user_of = np.repeat(np.arange(len(lengths)), lengths)
    ordered = np.sort(times)
    train_until = ordered[min(int(len(ordered) * share), len(ordered) - 1)]
    valid_until = ordered[min(int(len(ordered) * (1 + share) / 2), len(ordered) - 1)]
    train_end = np.bincount(user_of[times < train_until], minlength=len(lengths)).astype(np.int64)
    valid_end = np.bincount(user_of[times < valid_until], minlength=len(lengths)).astype(np.int64)
    valid = np.where((valid_end > train_end) & (train_end > 0), train_end, -1).astype(np.int64)
    test = np.where((lengths > valid_end) & (valid_end > 0), valid_end, -1).astype(np.int64)
    if not (valid >= 0).any() or not (test >= 0).any():
        raise InputError(
            f"a temporal split at {share} leaves no user with a history to evaluate",
            where="evaluation.split",
            fix="choose another share, or split: leave-one-out",
        )
    return Split(train_end=train_end, valid=valid, test=test)
