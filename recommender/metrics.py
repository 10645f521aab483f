"""Ranking metrics of one held-out item per user, from its 0-based rank."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


def per_user(ranks: Int64, ks: Sequence[int], *, depth: int | None = None) -> dict[str, Float64]:
    """{"hr@K", "ndcg@K", "mrr"} with one value per user.

    HR@K = [rank < K]; NDCG@K = [rank < K] / log2(rank + 2); MRR = 1 / (rank + 1) over the whole catalogue.
    `depth`: ranks were read from lists of that length (-1 = not in it), so a K beyond it and MRR are left
    out.
    """
    found = ranks >= 0
    gain: Float64 = np.where(found, 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0).astype(np.float64)
    out: dict[str, Float64] = {}
    for k in ks:
        if depth is not None and k > depth:
            continue
        hit = found & (ranks < k)
        out[f"hr@{k}"] = hit.astype(np.float64)
        out[f"ndcg@{k}"] = np.where(hit, gain, 0.0)
    if depth is None:
        out["mrr"] = (1.0 / (ranks + 1.0)).astype(np.float64)
    return out


def mean_metrics(values: Mapping[str, Float64]) -> dict[str, float]:
    """The mean over users of each metric."""
    return {name: float(value.mean()) for name, value in values.items()}
