"""Paired bootstrap: how sure a ratio is, over the same users or the same rounds of timing.

Users are drawn with replacement; each draw is used for every candidate and metric, so that what users have
in common cancels out (percentile intervals, Efron & Tibshirani 1993, chapter 13).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

MEMORY = 64 << 20
"""Bytes of drawn weights that are held at a time."""

MIN_ROUNDS = 6
"""With fewer samples no distribution-free 95% interval of a median exists (1 - 2 / 2^6 = 96.9%)."""


class Ratio(NamedTuple):
    """A ratio with what is known of its spread; a part that cannot be known is None."""

    ratio: float
    ci95: tuple[float, float] | None
    p_value: float | None


@dataclass(frozen=True)
class Resampled:
    """Sums of each metric of each candidate over all users, as observed and in every draw."""

    columns: Mapping[tuple[str, str], int]  # (candidate, metric) -> column
    users: int
    observed: Float64  # [columns]
    draws: Float64  # [draws, columns]

    def interval(self, candidate: str, metric: str) -> tuple[float, float]:
        """95% interval of a mean over users."""
        return _middle(self.draws[:, self.columns[candidate, metric]] / self.users)

    def ratio(self, candidate: str, against: str, metric: str) -> Ratio | None:
        """mean(candidate) / mean(against); None where one of them lacks the metric, or `against` has mean 0.

        Draws in which `against` sums to 0 have no ratio: they count as 0 for the lower bound and as infinite
        for the upper one; where that leaves no finite interval there is none. The p-value is two-sided, by
        the sign of the difference of the sums, which every draw has.
        """
        if (candidate, metric) not in self.columns or (against, metric) not in self.columns:
            return None
        above, below = self.columns[candidate, metric], self.columns[against, metric]
        if self.observed[below] == 0:
            return None
        top, bottom = self.draws[:, above], self.draws[:, below]
        return Ratio(
            ratio=float(self.observed[above] / self.observed[below]),
            ci95=_covering(*_ratios(top, bottom)),
            p_value=_two_sided(top - bottom, tolerance=1e-12 * self.users),
        )


@dataclass(frozen=True)
class Pooled:
    """One candidate against another over several data sets."""

    each: Mapping[str, Ratio]  # by data set
    mean: Ratio  # mean of the data sets' ratios: every data set weighs the same
    users: Ratio  # ratio of the means over all users: a data set weighs as its users and their metric do

    def non_inferior(self, on_all: float = 0.97, on_each: float = 0.95) -> bool:
        """Lower bound of `mean` above `on_all` and of each data set above `on_each`; no bound, no proof."""
        bounds = [(self.mean, on_all), *((ratio, on_each) for ratio in self.each.values())]
        return all(ratio.ci95 is not None and ratio.ci95[0] > least for ratio, least in bounds)


def pooled_ratio(datasets: Mapping[str, tuple[Float64, Float64]], *, draws: int, seed: int) -> Pooled | None:
    """mean(candidate) / mean(against) over data sets; None where `against` has mean 0 on one of them.

    `datasets`: name -> (candidate, against), one value (>= 0) of a metric per user, users in the same order.
    Users are drawn within each data set, which are strata: every draw holds as many users of each as there
    are (Efron & Tibshirani 1993, section 8.2). The data sets themselves are not drawn: the interval is about
    other users of these data sets, not about other data sets. The p-value of `mean` is two-sided, by the sign
    of the mean of the data sets' relative differences.
    """
    parts = {
        name: resample({"new": {"": new}, "old": {"": old}}, draws=draws, seed=seed + number)
        for number, (name, (new, old)) in enumerate(datasets.items())
    }
    found = {name: part.ratio("new", "old", "") for name, part in parts.items()}
    each = {name: ratio for name, ratio in found.items() if ratio is not None}
    if not each or len(each) < len(found):
        return None
    tops = [part.draws[:, part.columns["new", ""]] for part in parts.values()]
    bottoms = [part.draws[:, part.columns["old", ""]] for part in parts.values()]
    bounds = [_ratios(top, bottom) for top, bottom in zip(tops, bottoms, strict=True)]
    low, high = (np.mean([bound[side] for bound in bounds], axis=0) for side in (0, 1))
    top, bottom = np.sum(tops, axis=0), np.sum(bottoms, axis=0)
    sums = np.sum([[new.sum(), old.sum()] for new, old in datasets.values()], axis=0)
    users = sum(part.users for part in parts.values())
    return Pooled(
        each=each,
        mean=Ratio(
            float(np.mean([ratio.ratio for ratio in each.values()])),
            _covering(low, high),
            _two_sided(low - 1, tolerance=1e-12) if np.isfinite(high).all() else None,
        ),
        users=Ratio(
            float(sums[0] / sums[1]),
            _covering(*_ratios(top, bottom)),
            _two_sided(top - bottom, tolerance=1e-12 * users),
        ),
    )


def _ratios(top: Float64, bottom: Float64) -> tuple[Float64, Float64]:
    """top / bottom of every draw, for the lower and for the upper bound: 0 and infinite where bottom is 0."""
    possible = bottom > 0
    ratios = np.divide(top, bottom, out=np.zeros_like(top), where=possible)
    return ratios, np.where(possible, ratios, np.inf)


def _covering(low: Float64, high: Float64) -> tuple[float, float] | None:
    """95% interval from the two sides' draws, rounded outwards; None where it is not finite."""
    below = float(np.quantile(low, 0.025, method="lower"))
    above = float(np.quantile(high, 0.975, method="higher"))
    return (below, above) if np.isfinite(above) else None


def resample(
    metrics: Mapping[str, Mapping[str, Float64]],
    *,
    draws: int,
    seed: int,
    rows: NDArray[np.int64] | None = None,
) -> Resampled:
    """Draw users with replacement, `draws` times, and sum every metric of every candidate.

    `metrics`: candidate -> metric -> one value (>= 0) per user [n], users in the same order. `rows`: only
    these users.
    """
    keys = [(candidate, metric) for candidate, values in metrics.items() for metric in values]
    table = np.column_stack([metrics[candidate][metric] for candidate, metric in keys])
    table = table if rows is None else table[rows]
    # Equal columns become one: a candidate compared with itself has a ratio of exactly 1, whatever order a
    # matrix product adds in.
    distinct, column = np.unique(table, axis=1, return_inverse=True)
    return Resampled(
        columns=dict(zip(keys, column.reshape(-1).tolist(), strict=True)),
        users=len(table),
        observed=np.ascontiguousarray(distinct.T).sum(axis=1),
        draws=_draw_sums(np.ascontiguousarray(distinct), draws, seed),
    )


def _draw_sums(table: Float64, draws: int, seed: int) -> Float64:
    """[draws, columns]: sums over n users drawn with replacement from a table [n, columns]."""
    n = len(table)
    rng = np.random.default_rng(seed)
    chunk = max(1, min(draws, MEMORY // (8 * n)))
    sums = np.empty((draws, table.shape[1]))
    weights = np.empty((chunk, n))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        for row in range(size):
            weights[row] = np.bincount(rng.integers(0, n, n, dtype=np.int32), minlength=n)
        sums[start : start + size] = weights[:size] @ table
    return sums


def median_ratio(slow: Float64, fast: Float64, *, draws: int, seed: int) -> Ratio:
    """median(slow) / median(fast) of samples that were taken in the same rounds [rounds].

    Rounds are drawn as pairs, so that a disturbance that hit both cancels out. No interval below
    `MIN_ROUNDS`.
    """
    ratio = float(np.median(slow) / np.median(fast))
    if len(slow) < MIN_ROUNDS:
        return Ratio(ratio, None, None)
    index = _round_draws(len(slow), draws, seed)
    ratios = np.median(slow[index], axis=1) / np.median(fast[index], axis=1)
    return Ratio(ratio, _middle(ratios), _two_sided(ratios - 1, tolerance=1e-12))


def median_interval(samples: Float64, *, draws: int, seed: int) -> tuple[float, float] | None:
    """95% interval of a median, or None below `MIN_ROUNDS` samples."""
    if len(samples) < MIN_ROUNDS:
        return None
    return _middle(np.median(samples[_round_draws(len(samples), draws, seed)], axis=1))


def _round_draws(rounds: int, draws: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, rounds, (draws, rounds))


def _middle(values: Float64) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _two_sided(differences: Float64, *, tolerance: float) -> float:
    """Twice the smaller share of draws on one side of 0; not 0: draws show no less than 1 in draws + 1."""
    draws = len(differences)
    below = (np.count_nonzero(differences <= tolerance) + 1) / (draws + 1)
    above = (np.count_nonzero(differences >= -tolerance) + 1) / (draws + 1)
    return float(min(1.0, 2 * min(below, above)))
