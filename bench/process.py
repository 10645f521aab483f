"""What a child of the bench does with its own process, before it imports anything that starts threads.

Standard library only, for that reason.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
SETTLE_NS = 20_000_000
"""How long a child waits for its own threads to come to rest after a call."""

PROC = Path("/proc/self")


def usable_cores() -> list[int] | None:
    """Numbers of the cores that this process may run on; None where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def pin(cores: Sequence[int]) -> None:
    """Run on these cores only; threads that are started later inherit it."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def die_with(parent: int) -> None:
    """Be killed when the process that started this one ends, however it ends (Linux).

    Elsewhere a child ends when it finds its standard input closed, which a call that hangs does not notice.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def peak_memory_bytes(proc: Path = PROC) -> int:
    """Largest resident size that this process has had so far.

    VmHWM where it exists: unlike the resource usage it starts anew with the program, not with the fork.
    """
    status = proc / "status"
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def waited_ns(proc: Path = PROC) -> int:
    """Nanoseconds that threads of this process have spent so far ready to run, but without a core (Linux).

    0 where the system does not tell. What a hypervisor takes away is not in it.
    """
    return sum(_waited(task) for task in _tasks(proc))


def settled(limit_ns: int = SETTLE_NS, proc: Path = PROC) -> bool:
    """Wait until no thread but the calling one runs; False when some still do after `limit_ns`.

    Threads of a pool may spin for a while after a call in the hope of more work: then the next candidate
    would not have the cores to itself. True where the system does not tell.
    """
    own = os.getpid()
    stop = time.perf_counter_ns() + limit_ns
    while any(_runs(task) for task in _tasks(proc) if task.name != str(own)):
        if time.perf_counter_ns() > stop:
            return False
    return True


def _tasks(proc: Path) -> list[Path]:
    try:
        return list((proc / "task").iterdir())
    except OSError:
        return []


def _waited(task: Path) -> int:
    """The second number of schedstat: time on a run queue."""
    try:
        return int((task / "schedstat").read_text().split()[1])
    except (OSError, IndexError):  # it has ended, or the kernel does not count
        return 0


def _runs(task: Path) -> bool:
    """Whether a thread is in state R; its name, which stands before the state, may hold anything."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):  # it has ended
        return False
