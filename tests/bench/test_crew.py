import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from bench.crew import Crew, Limits, warming
from bench.loads import Load
from bench.process import usable_cores
from recommender.scoring import HistoryArrays, ScorerRef

PATIENT = Limits(opening=60, call=60)


def ref(path: Path, what: str = "nothing", *, opens: bool = True) -> ScorerRef:
    options = {"what": what, "opens": opens}
    return ScorerRef("x", "checkpoint", "torch", path, "tests.bench.scorers:open_misbehaving", options)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_an_interrupted_bench_leaves_no_process_behind(tmp_path: Path) -> None:
    crew = Crew(PATIENT, threads=1)
    with pytest.raises(KeyboardInterrupt), crew:
        crew.open("a", ref(tmp_path), "cpu")
        crew.open("b", ref(tmp_path), "cpu")
        pids = [child.pid for child in crew.children.values()]
        assert all(is_alive(pid) for pid in pids)
        raise KeyboardInterrupt
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids)


def test_opening_is_timed_for_each_and_one_that_fails_is_left_out(tmp_path: Path) -> None:
    with Crew(PATIENT, threads=1) as crew:
        crew.open("a", ref(tmp_path), "cpu")
        crew.open("b", ref(tmp_path, "raise", opens=False), "cpu")
        assert list(crew.children) == list(crew.opening_seconds) == ["a"]
        assert "the planted error" in crew.failures["b"].text


@pytest.mark.skipif(usable_cores() is None, reason="this system pins nothing")
def test_all_children_get_the_same_first_cores_and_never_more_than_there_are(tmp_path: Path) -> None:
    cores = usable_cores() or []
    assert Crew(PATIENT, threads=1).cores == cores[:1]
    assert Crew(PATIENT, threads=len(cores) + 5).cores == cores
    with Crew(PATIENT, threads=1) as crew:
        for name in ("a", "b"):
            crew.open(name, ref(tmp_path), "cpu")
            assert os.sched_getaffinity(crew.children[name].pid) == set(cores[:1])


def test_every_shape_of_a_load_is_warmed_up() -> None:
    def batch(seen: int) -> HistoryArrays:
        return HistoryArrays(np.ones((1, 2), dtype=np.int64), np.ones((1, seen), dtype=np.int64))

    load = Load("real", 1, [batch(width) for width in (3, 64, 300, 65, 900)])
    assert list(warming(load, 2)) == [0, 1, 2, 2, 3, 3]  # 900 is filled up as 300 is
    assert list(warming(load, 0)) == []
    assert list(warming(Load("real", 1, load.batches[:1]), 3)) == [0, 0, 0]
