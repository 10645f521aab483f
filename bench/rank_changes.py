"""Who wins and who loses when one candidate takes the place of another: changes of place, user by user.

A mean that stays the same may hide that half of the users got worse and the other half better.
"""

from collections.abc import Mapping

import numpy as np

from bench.quality import Judged
from bench.report.parts import RankChange
from bench.slices import Float64, Int64

SMALLEST = 10
"""Changes up to here have bins of their own even where none is that large."""


def rank_changes(judged: Mapping[str, Judged], against: str) -> list[RankChange]:
    """One histogram for every candidate but `against`, all with the same edges.

    Ranks are those of the first seed: places of one user under two trainings are not to be averaged. An
    artifact tells places only up to the end of its lists (`depth`); whatever lies beyond counts as `depth`,
    with both candidates alike, or an artifact would seem to lift every target that it merely cannot see. So
    a change beyond that depth does not show, and the counts are of changes within it. Empty where `against`
    was not judged.
    """
    if against not in judged:
        return []
    changes: dict[str, tuple[Int64, int | None]] = {
        name: _change(each, judged[against]) for name, each in judged.items() if name != against
    }
    largest = max((int(np.abs(values).max(initial=0)) for values, _ in changes.values()), default=0)
    edges = symmetric_edges(largest)
    return [
        RankChange(
            candidate=name,
            against=against,
            depth=depth,
            edges=edges.tolist(),
            counts=np.histogram(values, edges)[0].tolist(),
            better=int(np.count_nonzero(values < 0)),
            same=int(np.count_nonzero(values == 0)),
            worse=int(np.count_nonzero(values > 0)),
        )
        for name, (values, depth) in changes.items()
    ]


def symmetric_edges(largest: int) -> Float64:
    """Edges of bins for whole numbers up to `largest` on both sides of 0, two bins to a power of ten.

    Bins hold 0; 1 to 3; 4 to 10; 11 to 31; 32 to 100; ... and the same below 0. Edges lie halfway between
    whole numbers, so that both sides are mirror images and no change lies on an edge.
    """
    ends = [np.floor(10 ** (step / 2)) + 0.5 for step in range(1, 3)]
    while ends[-1] < max(largest, SMALLEST):
        ends.append(np.floor(10 ** ((len(ends) + 1) / 2)) + 0.5)
    upper = np.array([0.5, *ends])
    return np.concatenate([-upper[::-1], upper])


def _change(each: Judged, base: Judged) -> tuple[Int64, int | None]:
    """place with `each` - place with `base` [n], and the depth to which both are told (None: all of it)."""
    depths = [judged.ranked.depth for judged in (each, base) if judged.ranked.depth is not None]
    depth = min(depths, default=None)
    places, base_places = (_places(judged.ranked.ranks, depth) for judged in (each, base))
    return places - base_places, depth


def _places(ranks: Int64, depth: int | None) -> Int64:
    return ranks if depth is None else np.where((ranks < 0) | (ranks > depth), depth, ranks)
