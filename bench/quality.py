"""Ranking quality of one candidate on the test part: per user, over seeds, by slice, with coverage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.slices import Float64, Int64, Members, averaged, coverage, means, members, shelves
from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared, Split
from recommender.errors import StageError
from recommender.evaluate import Ranked, rank_users
from recommender.metrics import mean_metrics, per_user
from recommender.scoring import Scorer

RANKS = "ranks.parquet"

LISTED = 10
"""Length of the lists that coverage and samples are read from (less where the catalogue is smaller)."""


@dataclass(frozen=True)
class Judged:
    """Quality of one candidate; arrays have one row per evaluated user."""

    users: Int64  # [n]
    targets: Int64  # [n] rows
    per_user: dict[str, Float64]  # metric -> [n], averaged over seeds
    metrics_by_seed: dict[int, dict[str, Float64]]  # seed -> metric -> [n]
    ranks_by_seed: dict[int, Int64]  # seed -> [n] 0-based; -1: beyond the candidate's lists
    coverage: dict[str, float]  # averaged over seeds
    ranked: Ranked  # of the first seed: lists and ranks for the samples

    @cached_property
    def by_seed(self) -> dict[int, dict[str, float]]:
        """Mean of each metric over users, for every seed."""
        return {seed: mean_metrics(values) for seed, values in self.metrics_by_seed.items()}

    @property
    def quality(self) -> dict[str, float]:
        """Mean of each metric over users and seeds."""
        return means(self.per_user)

    def slice_quality(self, each: Members) -> dict[str, float]:
        """Mean of each metric over the users of one slice."""
        return means(self.per_user, each.rows)


def judge(
    scorers: Iterable[tuple[int, Scorer]],
    prepared: Prepared,
    split: Split,
    evaluation: EvaluationConfig,
    *,
    max_length: int,
    users: Int64 | None = None,
) -> Judged:
    """Rank the test part, or its `users` only, with the scorer of each seed, one after the other.

    `scorers` gives (seed, scorer). A scorer without exact ranks has no MRR. Raises StageError when seeds
    evaluate different users.
    """

    def ranked_by(scorer: Scorer) -> Ranked:
        return rank_users(
            scorer, prepared, split, "test", evaluation, max_length=max_length, top=LISTED, users=users
        )

    ranked = ((seed, ranked_by(scorer)) for seed, scorer in scorers)
    return judge_ranks(ranked, prepared.train_counts(split), evaluation.ks)


def drawn_users(split: Split, count: int | None, seed: int) -> Int64 | None:
    """`count` users of the test part at random, in ascending order; None where all of them are wanted."""
    everyone, _ = split.targets("test")
    if count is None or count >= len(everyone):
        return None
    chosen = np.random.default_rng(seed).choice(everyone, count, replace=False)
    return np.sort(chosen).astype(np.int64)


def judge_ranks(ranked: Iterable[tuple[int, Ranked]], train_counts: Int64, ks: Sequence[int]) -> Judged:
    """What one candidate's ranks and lists of every seed, given as (seed, ranked), say together.

    `train_counts` [n_items + 1]: how often each row occurs in the training part. Raises StageError when there
    is no seed, when seeds evaluate different users, or when lists are missing.
    """
    shelf = shelves(train_counts)
    runs = dict(ranked)
    if not runs:
        raise StageError("there is no seed to evaluate", where="bench")
    first = next(iter(runs.values()))
    covered: list[dict[str, float]] = []
    for seed, each in runs.items():
        if each.top is None:
            raise StageError("ranking gave no lists", where="bench")
        if not np.array_equal(each.users, first.users):
            raise StageError(f"seed {seed} evaluates other users than the first seed", where="bench")
        covered.append(coverage(each.top, shelf))
    metrics = {seed: per_user(each.ranks, ks, depth=each.depth) for seed, each in runs.items()}
    return Judged(
        users=first.users,
        targets=first.targets,
        per_user=over_seeds(metrics),
        metrics_by_seed=metrics,
        ranks_by_seed={seed: each.ranks for seed, each in runs.items()},
        coverage=averaged(covered),
        ranked=first,
    )


def over_seeds(metrics: Mapping[int, Mapping[str, Float64]]) -> dict[str, Float64]:
    """Average each user's metrics over seeds; a metric that one seed lacks is left out."""
    runs = list(metrics.values())
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: np.mean([run[name] for run in runs], axis=0) for name in shared}


def slices_of(prepared: Prepared, split: Split, judged: Judged) -> list[Members]:
    """The slices of the evaluated users, by history length and by popularity of the target in training."""
    shelf = shelves(prepared.train_counts(split))
    return members(split.test[judged.users], shelf[judged.targets])


def write_ranks(judged: Mapping[str, Judged], folder: Path) -> Path:
    """Write `ranks.parquet`: what any later comparison of these candidates needs, without a model.

    One row per candidate, seed and evaluated user: `user` (row number in the prepared data), `target` (row of
    the held-out item), `candidate`, `seed`, `rank` (0-based; -1: beyond the candidate's lists). The
    report.json beside it says which metrics may be computed from them, and of which data set they are.
    """
    import polars as pl

    parts = [
        pl.DataFrame({"user": each.users, "target": each.targets, "rank": ranks}).select(
            pl.col("user", "target").cast(pl.Int32),
            pl.lit(name).alias("candidate"),
            pl.lit(seed, dtype=pl.Int64).alias("seed"),
            pl.col("rank").cast(pl.Int32),
        )
        for name, each in judged.items()
        for seed, ranks in each.ranks_by_seed.items()
    ]
    file = folder / RANKS
    pl.concat(parts).write_parquet(file)
    return file


def key_metric(ks: Iterable[int]) -> str:
    """The metric of plots and headlines: NDCG@10 where it is measured, else at the largest cut-off."""
    cut_offs = tuple(ks)
    return f"ndcg@{10 if 10 in cut_offs else max(cut_offs)}"
