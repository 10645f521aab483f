from itertools import count

import numpy as np
import pytest

from export.speed import fastest, is_faster, speedups
from export.stage import settle
from recommender.scoring import HistoryArrays, TopK

HISTORIES = HistoryArrays(np.ones((5, 4), np.int64), np.ones((5, 2), np.int64))


class Ticking:
    """Answers nothing, in so many ticks of a shared clock."""

    limit = 10

    def __init__(self, clock: "Clock", ticks: float) -> None:
        self.clock, self.ticks, self.sizes = clock, ticks, set()

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        self.sizes.add(len(history.items))
        self.clock.now += self.ticks
        return TopK(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ratios_are_those_of_medians_and_the_floor_is_the_reference_against_itself() -> None:
    clock = Clock()
    turns = {"fp32": Ticking(clock, 6.0), "fast": Ticking(clock, 2.0), "slow": Ticking(clock, 12.0)}
    found = speedups(turns, HISTORIES, reference="fp32", clock=clock)  # type: ignore[arg-type]
    assert found["fast"] == {"batch-1": 3.0, "batch-32": 3.0, "mean": pytest.approx(3.0), "floor": 0.0}
    assert found["slow"]["mean"] == pytest.approx(0.5) and found["fp32"]["mean"] == pytest.approx(1.0)
    assert turns["fast"].sizes == {1, 32}
    assert fastest(found, "fp32") == "fast" and not is_faster(found["slow"])


def test_who_was_called_before_does_not_decide() -> None:
    """A variant that has to fetch its weights after another one was called is not slower for that."""
    clock, called = Clock(), []

    class Cold(Ticking):
        def top_k(self, history: HistoryArrays, k: int) -> TopK:
            self.ticks = 1.0 if called[-1:] == [self] else 9.0
            called.append(self)
            return super().top_k(history, k)

    turns = {name: Cold(clock, 0) for name in ("fp32", "fast", "scan-int8")}
    found = speedups(turns, HISTORIES, reference="fp32", clock=clock)  # type: ignore[arg-type]
    assert all(ratios["mean"] == 1.0 and ratios["floor"] == 0.0 for ratios in found.values())


def test_what_lies_within_the_floor_is_not_faster() -> None:
    clock, turn = Clock(), count()

    class Unsteady(Ticking):
        def top_k(self, history: HistoryArrays, k: int) -> TopK:
            self.ticks = 5.0 + next(turn) % 7
            return super().top_k(history, k)

    found = speedups(
        {"fp32": Unsteady(clock, 0), "fast": Ticking(clock, 7.9)},  # type: ignore[dict-item]
        HISTORIES, reference="fp32", clock=clock, rounds=3,
    )  # fmt: skip
    assert found["fast"]["floor"] > 0 and not is_faster(found["fast"])
    assert fastest(found, "fp32") == "fp32"
    assert is_faster({"mean": 1.05, "floor": 0.04}) and not is_faster({"mean": 1.05, "floor": 0.06})


def test_only_what_is_faster_or_named_is_kept_and_a_variant_that_ranks_otherwise_never_is() -> None:
    speed = {"fp32": 1.0, "fast": 1.4, "scan-int8": 0.8}
    measured = {name: {"speedup": {"mean": mean, "floor": 0.02}} for name, mean in speed.items()}
    assert settle(measured, named=()) == (["fp32", "fast"], "fast")
    assert settle(measured, named=("scan-int8",)) == (["fp32", "fast", "scan-int8"], "fast")
    measured["fast"] = {"failed": "it ranks otherwise"}
    assert settle(measured, named=()) == (["fp32"], "fp32")
