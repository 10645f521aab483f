import contextlib
import os
from pathlib import Path

import pytest

from bench.crew import Crew, Limits
from bench.process import usable_cores
from recommender.scoring import ScorerRef

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
