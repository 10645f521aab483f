"""Judged candidates from ranks that a test writes down."""

from collections.abc import Mapping, Sequence

import numpy as np

from bench.quality import Judged, judge_ranks
from recommender.evaluate import Ranked


def judged(
    ranks: Mapping[int, Sequence[int]] | Sequence[int],
    *,
    depth: int | None = None,
    ks: Sequence[int] = (1, 10),
) -> Judged:
    """seed -> one rank per user (or those of one seed); a list of `depth` does not tell ranks beyond it."""
    by_seed = ranks if isinstance(ranks, Mapping) else {0: ranks}
    found = {}
    for seed, values in by_seed.items():
        array = np.asarray(values, dtype=np.int64)
        shown = array if depth is None else np.where(array < depth, array, -1)
        users = np.arange(len(array), dtype=np.int64)
        found[seed] = Ranked(users, users % 7 + 1, shown, depth, np.ones((len(array), 1), dtype=np.int64))
    return judge_ranks(found.items(), np.ones(9, dtype=np.int64), ks)
