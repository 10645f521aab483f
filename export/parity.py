"""Does the exported graph rank like the model it came from? Real histories, judged outside of a margin.

A score may differ by what float32 allows between two runtimes, so a disagreement in rank counts only where
the reference's own gap between the two items exceeds that margin.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recommender.data.config import Section
from recommender.errors import GateError
from recommender.metrics import per_user
from recommender.scoring import Float32, Int64, TopK

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
DEPTH = 10
Bound = tuple[str, str, float]
NOTHING_FORBIDDEN: Bound = ("forbidden_items", "<=", 0.0)
TINY = 1e-12  # keeps the ratio of a model that scores everything 0 finite


class ParityConfig(Section):
    """On how many histories parity is measured, and what is allowed."""

    users: int = Field(
        256, ge=1, description="histories of each length class (1, short, medium, full, as they are)"
    )
    batch_sizes: tuple[int, ...] = Field((1, 7, 32), min_length=1, description="users per call")
    atol: float = Field(
        1e-4, gt=0, description="margin: score difference that is noise, per unit of a user's largest score"
    )
    max_score_error: float = Field(
        1e-3, gt=0, description="largest score difference, per unit of a user's largest score"
    )
    min_overlap: float = Field(
        0.999, ge=0, le=1, description="share of the top 10 that agrees outside the margin"
    )
    min_first: float = Field(
        0.999, ge=0, le=1, description="share of users whose first item agrees outside the margin"
    )
    min_order: float = Field(
        0.999, ge=0, le=1, description="share of places in the top 10 not overtaken by a clearly better item"
    )
    max_ndcg_change: float = Field(1e-3, ge=0, description="absolute change of NDCG@10 on the test users")
    quality_users: int = Field(
        4096,
        ge=1,
        description="test users on whom NDCG@10 of a variant that ranks otherwise (int8-body, bf16, ...) is "
        "compared; of a few hundred it changes by more than max_ndcg_change by chance",
    )


class Agreement(NamedTuple):
    """How one answer per user compares with the reference; every array is [B]."""

    score_difference: Float64  # largest absolute difference over the list
    mean_difference: Float64
    score_error: Float64  # the largest difference per unit of the user's largest score
    overlap: Float64  # share of the top 10 that both hold, as it is
    overlap_outside: Float64  # the same, items within the margin of the tenth forgiven
    first: Bool  # same first item
    first_outside: Bool
    order_outside: Float64  # share of places that no clearly better item of the list stands behind
    forbidden: Int64  # items that the reference masks, or that stand in the list twice


def compare(reference: Float32, answer: TopK, *, atol: float, depth: int = DEPTH) -> Agreement:
    """Hold lists [B, K] against reference scores [B, n_items + 1], masked rows at -inf.

    `depth` is cut to the length of the lists. A user's margin is atol x the largest |score| of any item.
    """
    depth = min(depth, answer.items.shape[1])
    usable, forbidden = _usable(reference, answer.items)
    at = np.take_along_axis(reference, answer.items, axis=1).astype(np.float64)  # [B, K]
    scale = np.abs(np.where(np.isfinite(reference), reference, 0.0)).max(axis=1).astype(np.float64)
    scale = np.maximum(scale, TINY)
    margin = atol * scale
    best = top_rows(reference, depth)  # [B, depth]
    best_at = np.take_along_axis(reference, best, axis=1).astype(np.float64)
    here, here_at, here_usable = answer.items[:, :depth], at[:, :depth], usable[:, :depth]
    behind = np.maximum.accumulate(here_at[:, ::-1], axis=1)[:, ::-1]  # the best score from each place on
    with np.errstate(invalid="ignore"):  # -inf minus -inf, where next to nothing is left to recommend
        difference = np.where(usable, np.abs(answer.scores - at), 0.0)
        near = here_usable & (best_at[:, -1:] - here_at <= margin[:, None])
        overtaken = here_usable & (behind - here_at > margin[:, None])
        first_near = here_usable[:, 0] & (best_at[:, 0] - here_at[:, 0] <= margin)
    shared = here_usable & (here[:, :, None] == best[:, None, :]).any(axis=2)
    possible = np.isfinite(best_at).sum(axis=1)
    nothing = possible == 0
    first = nothing | (here[:, 0] == best[:, 0])

    def share(agree: Bool) -> Float64:
        return np.where(nothing, 1.0, np.minimum(agree.sum(axis=1) / np.maximum(possible, 1), 1.0))

    return Agreement(
        score_difference=difference.max(axis=1),
        mean_difference=difference.sum(axis=1) / np.maximum(usable.sum(axis=1), 1),
        score_error=difference.max(axis=1) / scale,
        overlap=share(shared),
        overlap_outside=share(shared | near),
        first=first,
        first_outside=first | first_near,
        order_outside=1.0 - overtaken.mean(axis=1),
        forbidden=forbidden,
    )


def _usable(reference: Float32, items: Int64) -> tuple[Bool, Int64]:
    """Which places [B, K] hold an item that may stand there, and how many [B] hold one that may not."""
    earlier = np.tri(items.shape[1], k=-1, dtype=bool)
    twice = ((items[:, :, None] == items[:, None, :]) & earlier).any(axis=2)
    masked = ~np.isfinite(np.take_along_axis(reference, items, axis=1))
    given = items != 0
    return given & ~twice & ~masked, (given & (twice | masked)).sum(axis=1).astype(np.int64)


def top_rows(scores: Float32, k: int) -> Int64:
    """[B, k] rows of the best scores, best first, ties by ascending row."""
    kth = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]
    out = np.empty((len(scores), k), dtype=np.int64)
    for user, line in enumerate(scores):
        rows = np.flatnonzero(line >= kth[user])
        out[user] = rows[np.argsort(-line[rows], kind="stable")][:k]
    return out


def ndcg(items: Int64, targets: Int64, k: int = DEPTH) -> Float64:
    """NDCG@k [B] of lists [B, >= k or shorter] for one target row per user."""
    hit = items == targets[:, None]
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1), -1).astype(np.int64)
    return per_user(ranks, (k,), depth=k)[f"ndcg@{k}"]


def ndcg_change(before: Float64, after: Float64) -> dict[str, float]:
    """What NDCG@10 of the same users [n] was and is, the change, and the standard error of the change."""
    change = after - before
    return {
        "ndcg10_users": float(len(change)),
        "ndcg10_reference": float(before.mean()),
        "ndcg10_exported": float(after.mean()),
        "ndcg10_change": float(change.mean()),
        "ndcg10_change_error": float(change.std() / np.sqrt(len(change))),
    }


def summary(agreements: list[Agreement]) -> dict[str, float]:
    """The numbers of a gate over all users of some comparisons."""

    def joined(name: str) -> NDArray[np.float64]:
        return np.concatenate([np.asarray(getattr(one, name), dtype=np.float64) for one in agreements])

    return {
        "comparisons": float(len(joined("overlap"))),
        "max_score_difference": float(joined("score_difference").max()),
        "mean_score_difference": float(joined("mean_difference").mean()),
        "max_score_error": float(joined("score_error").max()),
        "top10_overlap": float(joined("overlap").mean()),
        "top10_overlap_outside_margin": float(joined("overlap_outside").mean()),
        "first_agreement": float(joined("first").mean()),
        "first_agreement_outside_margin": float(joined("first_outside").mean()),
        "order_agreement_outside_margin": float(joined("order_outside").mean()),
        "forbidden_items": float(joined("forbidden").sum()),
    }


def ranking_bounds(limits: ParityConfig) -> list[Bound]:
    """What `summary` has to come to where every place in a list has to hold."""
    return [
        ("top10_overlap_outside_margin", ">=", limits.min_overlap),
        ("first_agreement_outside_margin", ">=", limits.min_first),
        ("order_agreement_outside_margin", ">=", limits.min_order),
        ("max_score_error", "<=", limits.max_score_error),
    ]


def out_of_bounds(numbers: Mapping[str, float], bounds: Sequence[Bound]) -> list[str]:
    """Every number that is out of bounds (NaN is), with the bound."""
    return [
        f"{name} is {numbers[name]:.6g} (must be {sign} {bound:g})"
        for name, sign, bound in bounds
        if not (numbers[name] >= bound if sign == ">=" else abs(numbers[name]) <= bound)
    ]


def gate(
    numbers: Mapping[str, float], limits: ParityConfig, *, lossy: bool = False, where: str = "export.parity"
) -> None:
    """Raise GateError naming every number that is out of bounds (NaN is), with the bound.

    `lossy`: only the quality and the mask have to hold, not every place in a list.
    """
    quality = [("ndcg10_change", "<=", limits.max_ndcg_change), NOTHING_FORBIDDEN]
    failed = out_of_bounds(numbers, quality if lossy else [*ranking_bounds(limits), *quality])
    if failed and lossy:
        raise GateError(
            f"it does not rank as well as its model: {'; '.join(failed)}",
            where=where,
            fix=f"leave it out; over {numbers['ndcg10_users']:.0f} users the change of NDCG@10 has a "
            f"standard error of {numbers['ndcg10_change_error']:.2g}: where that is not far below the limit, "
            "raise parity.quality_users",
        )
    if failed:
        raise GateError(
            f"the exported graph does not rank like its model: {'; '.join(failed)}",
            where=where,
            fix="do not deploy this graph; look for what the model computes differently when traced",
        )
