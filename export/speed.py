"""Is a variant faster than the canonical graph on this machine? Interleaved calls on real histories.

Good enough to choose which variants an artifact holds; what is told to people is measured by `bench`, in
processes of their own.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from export.runtime import Artifact
from recommender.scoring import HistoryArrays

ROUNDS = 40
WARM_UP = 3
BATCHES = (1, 32)
Clock = Callable[[], float]


def speedups(
    artifacts: Mapping[str, Artifact],
    histories: HistoryArrays,
    *,
    reference: str,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    clock: Clock = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """{variant: {"batch-1": ratio, ..., "mean": geometric mean, "floor": ...}}; a ratio above 1 is faster.

    Every round calls every variant, and the reference twice, with the same users, in an order drawn anew;
    ratios are those of medians. A timed call comes after one of the same variant, as in serving: else the
    reference, which has two turns, would find its weights in the cache more often than the others. `floor`:
    how far the reference lies from itself, so a mean below 1 + floor says nothing.
    """
    twin = f"{reference} again"
    turns = {**artifacts, twin: artifacts[reference]}
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {name: {} for name in turns}
    for size in batches:
        seconds = _medians(turns, histories, size, rounds, rng, clock)
        for name in turns:
            found[name][f"batch-{size}"] = seconds[reference] / seconds[name]
    floor = max(abs(ratio - 1) for ratio in found.pop(twin).values())
    for ratios in found.values():
        ratios["mean"] = float(np.exp(np.mean(np.log(list(ratios.values())))))
        ratios["floor"] = floor
    return found


def _medians(
    turns: Mapping[str, Artifact],
    histories: HistoryArrays,
    size: int,
    rounds: int,
    rng: np.random.Generator,
    clock: Clock,
) -> dict[str, float]:
    """Median seconds of a call with `size` users drawn from the histories."""
    names = list(turns)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-WARM_UP, rounds):
        users = rng.integers(0, len(histories.items), size)
        batch = HistoryArrays(
            histories.items[users], None if histories.seen is None else histories.seen[users]
        )
        for turn in rng.permutation(len(names)):
            artifact = turns[names[turn]]
            artifact.top_k(batch, min(10, artifact.limit))
            started = clock()
            artifact.top_k(batch, min(10, artifact.limit))
            if number >= 0:
                taken[names[turn]].append(clock() - started)
    return {name: float(np.median(values)) for name, values in taken.items()}


def fastest(ratios: Mapping[str, Mapping[str, float]], reference: str) -> str:
    """The variant with the largest mean ratio, or the reference where none is clearly faster than it."""
    best = max(ratios, key=lambda name: ratios[name]["mean"])
    return best if is_faster(ratios[best]) else reference


def is_faster(ratios: Mapping[str, float]) -> bool:
    """Whether a mean ratio lies above what the reference shows against itself."""
    return ratios["mean"] > 1 + ratios["floor"]
