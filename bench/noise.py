"""How far two seeds of the same model differ: what a difference between two models has to be seen beside."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.compare import Pooled, Ratio, pooled_ratio, resample
from bench.quality import Judged
from bench.slices import Float64


def aa_half_widths(judged: Judged, *, draws: int, seed: int) -> dict[str, float]:
    """A/A half-width of each metric: how far the ratio of one model with two seeds may lie from 1.

    For every ordered pair of seeds, the ratio mean(seed s) / mean(seed t) over the same users has a 95%
    interval; `half_width` turns it into the smallest interval around 1 that covers it, so both parts count:
    how far the two trainings came out apart (|ratio - 1|), and how little the users tell (the interval).
    Half the interval's own width would leave the first part out, and two seeds that differ by 10% for sure
    would pass for equal. Averaged over pairs, so the order of seeds has no say.

    It holds for one seed against one other. A comparison of means over S seeds holds less of that noise, so
    it is a cautious yardstick there. Few seeds say little: with two there is a single pair. Seeds that came
    out alike in every rank are one training (`trainings`). Empty with one of them; a metric without an
    interval for some pair (users too few, or a mean of 0) is left out.
    """
    by_seed = {str(number): judged.metrics_by_seed[number] for number in trainings([judged.ranks_by_seed])}
    if len(by_seed) < 2:
        return {}
    drawn = resample(by_seed, draws=draws, seed=seed)
    found = {}
    for metric in judged.per_user:
        widths = [half_width(drawn.ratio(one, other, metric)) for one, other in permutations(by_seed, 2)]
        known = [width for width in widths if width is not None]
        if len(known) == len(widths):
            found[metric] = float(np.mean(known))
    return found


def pooled_half_width(
    datasets: Mapping[str, Mapping[int, Float64]], *, draws: int, seed: int
) -> float | None:
    """A/A half-width of the mean of the data sets' ratios (`bench.compare.pooled_ratio`).

    `datasets`: name -> seed -> one value per user, of one model and metric. Uses the seeds that all data sets
    have and that are `trainings` of their own on each; None with fewer than two, or without an interval.
    """
    widths = []
    for one, other in permutations(trainings(list(datasets.values())), 2):
        found: Pooled | None = pooled_ratio(
            {name: (seeds[one], seeds[other]) for name, seeds in datasets.items()}, draws=draws, seed=seed
        )
        widths.append(None if found is None else half_width(found.mean))
    known = [width for width in widths if width is not None]
    return float(np.mean(known)) if known and len(known) == len(widths) else None


def trainings(datasets: Sequence[Mapping[int, NDArray[Any]]]) -> list[int]:
    """The seeds that all data sets have and that differ from one another on every one of them.

    `datasets`: seed -> one number per user. One model that was given for several seeds comes out alike with
    all of them, which says nothing of how far trainings differ; the first stands for them.
    """
    shared = sorted(set.intersection(*map(set, datasets))) if datasets else []
    found: list[int] = []
    for seed in shared:
        if not any(np.array_equal(each[seed], each[known]) for known in found for each in datasets):
            found.append(seed)
    return found


def half_width(ratio: Ratio | None) -> float | None:
    """Half the smallest interval around 1 that covers the ratio's 95% interval; None where it has none."""
    if ratio is None or ratio.ci95 is None:
        return None
    low, high = ratio.ci95
    return max(high - 1, 1 - low)
