import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import child as child_module
from bench.child import Child, ChildFailed, environment_of_child
from bench.process import usable_cores
from recommender.errors import InputError
from recommender.scoring import HistoryArrays, ScorerRef

PATIENT = 60.0
ROOT = Path(__file__).parents[2]
BATCH = HistoryArrays(np.array([[0, 1], [1, 2]]), seen=np.array([[1], [2]]))


def ref(path: Path, opener: str = "open_misbehaving", **options: Any) -> ScorerRef:
    return ScorerRef("x", "checkpoint", "torch", path, f"tests.bench.scorers:{opener}", options)


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child("x", threads=1, cores=(usable_cores() or [0])[:1])
    yield made
    made.end()


def opened(child: Child, path: Path, what: str, **options: Any) -> Child:
    child.open(ref(path, what=what, **options), device="cpu", seconds=PATIENT)
    child.load([BATCH], seconds=PATIENT)
    return child


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def told(path: Path) -> Mapping[str, Any]:
    said: Mapping[str, Any] = json.loads(path.read_text())
    return said


def test_the_candidate_lives_in_another_process_that_is_pinned_before_its_libraries_start(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    assert child.open(ref(said, "open_telling"), device="cpu", seconds=PATIENT) > 0
    found = told(said)
    assert found["pid"] != os.getpid()
    assert found["cores"] == (usable_cores() or [0])[:1] if usable_cores() else found["cores"] is None
    assert (found["device"], found["threads"], found["torch"]) == ("cpu", 1, False)
    pools = found["environment"]
    assert (pools["OMP_NUM_THREADS"], pools["MKL_NUM_THREADS"], pools["OMP_WAIT_POLICY"]) == (
        "1",
        "1",
        "PASSIVE",
    )


def test_pools_of_a_child_do_not_spin_and_follow_no_affinity_of_the_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "1")
    found = environment_of_child(3)
    assert (found["OMP_WAIT_POLICY"], found["OMP_NUM_THREADS"]) == ("PASSIVE", "3")
    assert not {"OMP_PROC_BIND", "GOMP_CPU_AFFINITY"} & set(found)


def test_a_call_is_timed_by_the_child_and_what_libraries_print_is_no_answer(
    child: Child, tmp_path: Path
) -> None:
    child.open(ref(tmp_path / "said", "open_telling"), device="cpu", seconds=PATIENT)
    child.load([BATCH, BATCH], seconds=PATIENT)
    found = child.call(1, 2, seconds=PATIENT)
    assert found.ns > 0 and found.device_ms is None
    resident, on_device = child.peak(seconds=PATIENT)
    assert resident > 1 << 20 and on_device is None
    seconds, users = child.burst(2, lasting=0.001, seconds=PATIENT)
    assert seconds >= 0.001 and users >= 2 and users % 2 == 0


@pytest.mark.parametrize(
    ("what", "how", "words"),
    [
        ("raise", "raised", "raised in a call: ValueError: the planted error"),
        ("segv", "crashed", "was ended by SIGSEGV in a call"),
        ("kill", "crashed", r"was ended by SIGKILL \(out of memory\?\) in a call"),
        ("exit", "crashed", "ended with exit code 3 in a call"),
    ],
)
def test_a_candidate_that_fails_in_a_call_is_told_of_with_its_last_words(
    child: Child, tmp_path: Path, what: str, how: str, words: str
) -> None:
    opened(child, tmp_path, what, after=1)
    child.call(0, 2, seconds=PATIENT)
    with pytest.raises(ChildFailed, match=words) as failure:
        child.call(0, 2, seconds=PATIENT)
    assert failure.value.how == how and "last words" in failure.value.text
    assert "\n" not in failure.value.text


@pytest.mark.parametrize("what", ["raise", "segv"])
def test_a_candidate_that_does_not_open_is_told_of(child: Child, tmp_path: Path, what: str) -> None:
    with pytest.raises(ChildFailed, match="while it was opened"):
        opened(child, tmp_path, what, opens=False)


def test_a_candidate_that_hangs_is_given_up_and_ended(child: Child, tmp_path: Path) -> None:
    opened(child, tmp_path, "hang")
    with pytest.raises(ChildFailed, match=r"gave no answer within 0.2 s in a call.*last words") as failure:
        child.call(0, 2, seconds=0.2)
    assert failure.value.how == "hung"
    assert not is_alive(child.pid)


def test_a_child_that_never_reads_its_orders_does_not_block_the_parent(child: Child, tmp_path: Path) -> None:
    opened(child, tmp_path, "hang")
    with pytest.raises(ChildFailed):
        child.call(0, 2, seconds=0.1)
    stopped = Child("y", threads=1, cores=())
    os.kill(stopped.pid, signal.SIGSTOP)
    large = HistoryArrays(np.ones((1000, 1000), dtype=np.int64))  # more than a pipe holds
    with pytest.raises(ChildFailed, match="while it took a load"):
        stopped.load([large], seconds=0.2)
    assert not is_alive(stopped.pid)


def test_bad_input_stays_an_input_error(child: Child, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the planted input error") as error:
        opened(child, tmp_path, "input", opens=False)
    assert (error.value.where, error.value.fix) == ("here", "mend it")
    assert not is_alive(child.pid)


def test_ending_twice_is_once_and_leaves_no_process(child: Child) -> None:
    child.end()
    child.end()
    assert not is_alive(child.pid)


def test_an_interrupted_wait_ends_the_child(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(child, tmp_path, "hang")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(child_module, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.call(0, 2, seconds=PATIENT)
    assert not is_alive(child.pid)


ORPHAN = """
import os, sys
from pathlib import Path
from bench.child import Child
from recommender.scoring import ScorerRef
import numpy as np
from recommender.scoring import HistoryArrays
OPENER = "tests.bench.scorers:open_misbehaving"
child = Child("x", threads=1, cores=())
ref = ScorerRef("x", "checkpoint", "torch", Path("."), OPENER, {"what": "hang"})
child.open(ref, device="cpu", seconds=60)
child.load([HistoryArrays(np.ones((1, 1), dtype=np.int64))], seconds=60)
print(child.pid, flush=True)
child.call(0, 1, seconds=600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_a_child_in_the_middle_of_a_call_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    descriptor = os.pidfd_open(pid)  # readable when the process has ended
    parent.kill()
    parent.wait()
    child_module._wait(descriptor, selectors.EVENT_READ, time.monotonic() + PATIENT)  # else TimeoutError
    os.close(descriptor)
    parent.stdout.close()
