"""Full ranking of held-out interactions with any scorer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared, Split
from recommender.errors import InputError
from recommender.metrics import mean_metrics, per_user
from recommender.scoring import HistoryArrays, Int64, RankScorer, Scorer, TopK

USERS_PER_CALL = 4096  # bounds the memory of the padded arrays, whatever the number of users


@dataclass(frozen=True)
class Ranked:
    """Where the held-out item of each evaluated user came out."""

    users: Int64  # [n]
    targets: Int64  # [n] rows
    ranks: Int64  # [n] 0-based; -1 = beyond depth
    depth: int | None  # length of the lists that the ranks were read from; None = exact, whole catalogue
    top: Int64 | None  # [n, k] recommended rows, if asked for


def histories(
    prepared: Prepared, users: Int64, ends: Int64, max_length: int, *, mask_seen: bool = True
) -> HistoryArrays:
    """The first `ends[i]` interactions of each user as left-padded rows [n, L]; L is the longest, at most
    max_length.

    `seen` holds the WHOLE history, also what the model no longer reads.
    """
    starts = np.asarray(prepared.offsets)[users]
    items = _windows(prepared, starts, ends, max_length)
    seen = _windows(prepared, starts, ends, None) if mask_seen else None
    times = None
    if prepared.times is not None:
        times = _windows(prepared, starts, ends, max_length, prepared.times)
    return HistoryArrays(items, seen, times)


def _windows(
    prepared: Prepared, starts: Int64, ends: Int64, limit: int | None, values: Int64 | None = None
) -> Int64:
    """[n, L] the newest `limit` values of each history, zeros in front."""
    width = max(int(ends.max(initial=1)), 1)
    if limit is not None:
        width = min(width, limit)
    index = (starts + ends)[:, None] - np.arange(width, 0, -1)[None, :]
    real = index >= starts[:, None]
    source = prepared.items if values is None else values
    out: Int64 = np.where(real, source[np.where(real, index, 0)], 0).astype(np.int64)
    return out


def rank_users(
    scorer: Scorer,
    prepared: Prepared,
    split: Split,
    part: Literal["valid", "test"],
    evaluation: EvaluationConfig,
    *,
    max_length: int,
    top: int | None = None,
    users: Int64 | None = None,
) -> Ranked:
    """Rank the held-out item of each user (or of `users` only) against the whole catalogue.

    A scorer without exact ranks is read through its top lists of length max(ks) (`ranks_in_lists`).
    """
    everyone, positions = split.targets(part)
    if users is not None:
        wanted = np.isin(everyone, users)
        everyone, positions = everyone[wanted], positions[wanted]
    if evaluation.sampled_negatives is not None and not isinstance(scorer, RankScorer):
        raise InputError(
            "ranks among sampled items need a scorer with exact ranks; an artifact gives only its best items",
            where="evaluation.sampled_negatives",
            fix="leave sampled_negatives out, or compare checkpoints only",
        )
    depth = None if isinstance(scorer, RankScorer) else min(max(evaluation.ks), prepared.n_items)
    top = None if top is None else min(top, prepared.n_items)
    targets = np.asarray(prepared.items)[np.asarray(prepared.offsets)[everyone] + positions].astype(np.int64)
    ranks = np.empty(len(everyone), dtype=np.int64)
    lists = None if top is None else np.empty((len(everyone), top), dtype=np.int64)
    for chosen in _by_length(positions):
        who, ends, gold = everyone[chosen], positions[chosen], targets[chosen]
        batch = histories(prepared, who, ends, max_length, mask_seen=evaluation.mask_seen)
        best: TopK | None = None
        if depth is not None:
            best = scorer.top_k(_letting_through(batch, gold), max(top or 0, depth))
            ranks[chosen] = ranks_in_lists(
                best.items[:, :depth], best.scores[:, :depth], gold, evaluation.ties
            )
        else:
            ranks[chosen] = _exact_ranks(scorer, batch, who, gold, prepared.n_items, evaluation)
            if top is not None:
                best = scorer.top_k(batch, top)
        if lists is not None and best is not None:
            lists[chosen] = best.items[:, :top]
    return Ranked(everyone, targets, ranks, depth, lists)


def _exact_ranks(
    scorer: Scorer,
    batch: HistoryArrays,
    users: Int64,
    targets: Int64,
    n_items: int,
    evaluation: EvaluationConfig,
) -> Int64:
    """Ranks in the whole catalogue, or among sampled negatives where the evaluation asks for them."""
    assert isinstance(scorer, RankScorer)
    among = None
    if evaluation.sampled_negatives is not None:
        among = sample_negatives(batch.seen, targets, users, n_items, evaluation.sampled_negatives)
    return scorer.ranks(batch, targets, ties=evaluation.ties, among=among)


def _letting_through(batch: HistoryArrays, targets: Int64) -> HistoryArrays:
    """The batch with the target taken out of `seen`: a repeat may be found, as exact ranks allow it too."""
    if batch.seen is None:
        return batch
    return batch._replace(seen=np.where(batch.seen == targets[:, None], 0, batch.seen))


def _by_length(lengths: Int64) -> Iterator[Int64]:
    """Indices of users in chunks of similar length, so that one long history does not pad them all."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), USERS_PER_CALL):
        yield order[start : start + USERS_PER_CALL]


def sample_negatives(seen: Int64 | None, targets: Int64, users: Int64, n_items: int, count: int) -> Int64:
    """[n, count] rows that are neither the target nor seen, uniform with replacement.

    Each user has a stream of his own (seeded by his number), so every candidate is ranked among the same
    items.
    """
    out = np.empty((len(targets), count), dtype=np.int64)
    for i, user in enumerate(users):
        allowed = np.ones(n_items + 1, dtype=bool)
        allowed[0] = allowed[targets[i]] = False
        if seen is not None:
            allowed[seen[i]] = False
        out[i] = np.random.default_rng(int(user)).choice(np.flatnonzero(allowed), count)
    return out


def ranks_in_lists(items: Int64, scores: np.ndarray, targets: Int64, ties: str) -> Int64:
    """0-based rank of each target in its list, -1 where it is not in it or may not be.

    Pessimistic ties: everything in the list that scores at least as much stands before the target; if a tie
    reaches the end of the list, items beyond it may be tied too, and the target counts as missed. (A target
    that stands last with nobody beside it counts as found.) A list that holds a NaN has no order, whatever
    the ties: its target counts as missed.
    """
    here = items == targets[:, None]
    found = here.any(axis=1) & ~np.isnan(scores).any(axis=1)
    place = here.argmax(axis=1)
    if ties == "by-row":
        return np.where(found, place, -1)
    gold = scores[np.arange(len(targets)), place]
    rank = (scores >= gold[:, None]).sum(axis=1) - 1
    open_ended = scores[:, -1] >= gold
    alone = place == items.shape[1] - 1
    tied_at_end = open_ended & ~(alone & (rank == place))
    return np.where(found & ~tied_at_end, rank, -1).astype(np.int64)


def quality(
    scorer: Scorer,
    prepared: Prepared,
    split: Split,
    part: Literal["valid", "test"],
    evaluation: EvaluationConfig,
    *,
    max_length: int,
    users: Int64 | None = None,
) -> dict[str, float]:
    """Mean metrics of a scorer: {"hr@10": ..., "ndcg@10": ..., ...}."""
    ranked = rank_users(scorer, prepared, split, part, evaluation, max_length=max_length, users=users)
    return mean_metrics(per_user(ranked.ranks, evaluation.ks, depth=ranked.depth))
