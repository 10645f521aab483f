"""All candidates of a bench, each in its own child, and the reference once more for the A/A floor.

A child that fails is left out from then on and its failure kept; the others go on.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from bench.child import Call, Child, ChildFailed
from bench.loads import Load
from bench.process import usable_cores
from recommender.scoring import ScorerRef
from recommender.shapes import seen_width

T = TypeVar("T")

TWIN = " (A/A)"
"""Put behind the reference's name for its second child; no name of a recipe holds a space."""


@dataclass(frozen=True)
class Limits:
    """Seconds to wait for an answer."""

    opening: float  # also of calls that warm up, which may compile
    call: float


@dataclass
class Crew:
    """Children by name, those that work; what became of the others; and what opening them took.

    Used as a context: whatever happens inside, no child outlives it.
    """

    limits: Limits
    threads: int
    children: dict[str, Child] = field(default_factory=dict)
    failures: dict[str, ChildFailed] = field(default_factory=dict)
    opening_seconds: dict[str, float] = field(default_factory=dict)
    warming_seconds: dict[str, float] = field(default_factory=dict)
    restless: Counter[str] = field(default_factory=Counter)  # timed calls after which threads still ran
    called_ns: Counter[str] = field(default_factory=Counter)  # all timed calls together
    waited_ns: Counter[str] = field(default_factory=Counter)  # of that, without a core

    @property
    def cores(self) -> list[int] | None:
        """The cores that every child is pinned to; None where the system pins nothing."""
        cores = usable_cores()
        return None if cores is None else cores[: self.threads]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.children.values():
            child.end()

    def open(self, name: str, ref: ScorerRef, device: str) -> None:
        """Start a child and open its candidate, one at a time so that the time it takes is its own."""
        child = self.children[name] = Child(name, threads=self.threads, cores=self.cores or ())

        def opened(child: Child) -> float:
            return child.open(ref, device=device, seconds=self.limits.opening)

        seconds = self._of(name, child, opened)
        if seconds is not None:
            self.opening_seconds[name] = seconds

    def take(self, load: Load, *, k: int, warmup: int) -> None:
        """Send every child the batches, and let it make `warmup` calls of each of their shapes."""
        numbers = list(warming(load, warmup))

        def warm(child: Child) -> float:
            child.load(load.batches, seconds=self.limits.opening)
            calls = [child.call(number, k, seconds=self.limits.opening) for number in numbers]
            return sum(call.ns for call in calls) / 1e9

        for name, seconds in self.each(warm).items():
            self.warming_seconds[name] = self.warming_seconds.get(name, 0.0) + seconds

    def each(self, work: Callable[[Child], T | None]) -> dict[str, T]:
        """What each working child makes of it, one after the other; without those that fail or say None."""
        made = {name: self._of(name, child, work) for name, child in list(self.children.items())}
        return {name: value for name, value in made.items() if value is not None}

    def count(self, name: str, calls: Sequence[Call]) -> None:
        """Keep how undisturbed the timed calls were."""
        self.called_ns[name] += sum(call.ns for call in calls)
        self.restless[name] += sum(not call.rested for call in calls)
        self.waited_ns[name] += sum(call.waited_ns for call in calls)

    def fail(self, name: str, failure: ChildFailed) -> None:
        """Leave a child out from now on."""
        self.children.pop(name).end()
        self.failures[name] = failure

    def _of(self, name: str, child: Child, work: Callable[[Child], T | None]) -> T | None:
        try:
            return work(child)
        except ChildFailed as failure:
            self.fail(name, failure)
            return None


def warming(load: Load, calls: int) -> Iterator[int]:
    """Numbers of the batches that warm up: the first ones, then one of every shape that these have not.

    What is compiled per shape is then compiled before the clock starts.
    """
    widths = {seen_width(load.batches[number % len(load.batches)]) for number in range(calls)}
    yield from (number % len(load.batches) for number in range(calls))
    for number, batch in enumerate(load.batches):
        if calls and seen_width(batch) not in widths:
            widths.add(seen_width(batch))
            yield from [number] * calls
