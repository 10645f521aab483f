"""Ranking quality of one candidate on the test part: per user, over seeds, by slice, with coverage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.slices import Float64, Int64, Members, averaged, coverage, means, members, shelves
from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared, Split
from recommender.errors import StageError
from recommender.evaluate import Ranked, rank_users
from recommender.metrics import mean_metrics, per_user
from recommender.scoring import Scorer

LISTED = 10
"""Length of the lists that coverage and samples are read from (less where the catalogue is smaller)."""


@dataclass(frozen=True)
class Judged:
    """Quality of one candidate; arrays have one row per evaluated user."""

    users: Int64  # [n]
    targets: Int64  # [n] rows
    per_user: dict[str, Float64]  # metric -> [n], averaged over seeds
    by_seed: dict[int, dict[str, float]]
    coverage: dict[str, float]  # averaged over seeds
    ranked: Ranked  # of the first seed: lists and ranks for the samples

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
) -> Judged:
    """Rank the test part with the scorer of each seed, one after the other.

    `scorers` gives (seed, scorer). A scorer without exact ranks has no MRR. Raises StageError when seeds
    evaluate different users.
    """
    shelf = shelves(prepared.train_counts(split))
    first: Ranked | None = None
    metrics: dict[int, dict[str, Float64]] = {}
    covered: list[dict[str, float]] = []
    for seed, scorer in scorers:
        ranked = rank_users(scorer, prepared, split, "test", evaluation, max_length=max_length, top=LISTED)
        if ranked.top is None:
            raise StageError("ranking gave no lists", where="bench")
        if first is None:
            first = ranked
        elif not np.array_equal(ranked.users, first.users):
            raise StageError(f"seed {seed} evaluates other users than the first seed", where="bench")
        metrics[seed] = per_user(ranked.ranks, evaluation.ks, depth=ranked.depth)
        covered.append(coverage(ranked.top, shelf))
    if first is None:
        raise StageError("there is no seed to evaluate", where="bench")
    return Judged(
        users=first.users,
        targets=first.targets,
        per_user=over_seeds(metrics),
        by_seed={seed: mean_metrics(values) for seed, values in metrics.items()},
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


def key_metric(ks: Iterable[int]) -> str:
    """The metric of plots and headlines: NDCG@10 where it is measured, else at the largest cut-off."""
    cut_offs = tuple(ks)
    return f"ndcg@{10 if 10 in cut_offs else max(cut_offs)}"
