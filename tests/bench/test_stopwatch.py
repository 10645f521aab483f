import itertools

import pytest

from bench.stopwatch import Stopwatch, replaced


class Subject:
    def method(self) -> str:
        return "own"


def test_time_belongs_to_the_part_that_was_turned_to() -> None:
    times = iter([0, 5, 7, 17, 20])
    watch = Stopwatch(clock=lambda: next(times))
    watch.turn("a")
    watch.turn("b")
    watch.turn("a")
    watch.turn("other")
    assert watch.spent == {"other": 5, "a": 2 + 3, "b": 10}


def test_restarting_forgets() -> None:
    times = iter([0, 5, 9, 10])
    watch = Stopwatch(clock=lambda: next(times))
    watch.turn("a")
    watch.restart()
    watch.turn("other")
    assert watch.spent == {"other": 1}


def test_a_call_that_raises_ends_its_part() -> None:
    ticks = itertools.count()
    watch = Stopwatch(clock=lambda: next(ticks))

    def fails() -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        watch.within("a", fails, after="b")()
    assert watch.part == "b" and watch.spent["a"] == 1


def test_what_was_replaced_comes_back_whatever_happens() -> None:
    subject = Subject()
    with pytest.raises(ValueError, match="planted"), replaced(subject, "method", lambda: "other"):
        assert subject.method() == "other"
        raise ValueError("planted")
    assert subject.method() == "own" and "method" not in vars(subject)
    with replaced(Subject, "method", lambda self: "class"):
        assert subject.method() == "class"
    assert subject.method() == "own"
