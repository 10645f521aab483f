"""A clock that is always in one part of a call, and the swapping of what it watches."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Nanoseconds by part: whatever runs until the next `turn` belongs to the part that was turned to."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock = clock
        self.spent: Counter[str] = Counter()
        self.part, self.since = "other", clock()

    def turn(self, part: str) -> None:
        """From now on the time belongs to `part`."""
        now = self.clock()
        self.spent[self.part] += now - self.since
        self.part, self.since = part, now

    def restart(self) -> None:
        """Forget everything."""
        self.spent.clear()
        self.part, self.since = "other", self.clock()

    def within(self, part: str, call: Callable[..., Any], after: str = "other") -> Callable[..., Any]:
        """`call`, during which the time belongs to `part`, and `after` it to another."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.turn(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.turn(after)

        return timed


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """`owner.name` is `value` for the length of the context, then what it was."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
