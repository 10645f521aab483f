"""Scorers that a child can open without torch: some answer, some misbehave in a way that is asked for."""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recommender.errors import InputError
from recommender.scoring import HistoryArrays, Int64, TopK


class TopOnly:
    """Recommends rows in a fixed order, without what was seen."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.calls: list[tuple[int, int]] = []

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        self.calls.append(history.items.shape)
        seen = np.zeros((len(history.items), 1), dtype=np.int64) if history.seen is None else history.seen
        items = np.zeros((len(history.items), k), dtype=np.int64)
        scores = np.full((len(history.items), k), -np.inf, dtype=np.float32)
        for user, known in enumerate(seen):
            left = [row for row in self.order if row not in known][:k]
            items[user, : len(left)] = left
            scores[user, : len(left)] = np.arange(len(left), 0, -1)
        return TopK(items, scores)


class Fixed(TopOnly):
    """The same with exact ranks."""

    def ranks(
        self, history: HistoryArrays, targets: Int64, *, ties: str = "pessimistic", among: Int64 | None = None
    ) -> Int64:
        best = self.top_k(history, len(self.order)).items
        found: Int64 = (best == targets[:, None]).argmax(axis=1).astype(np.int64)
        return found


def open_fixed(path: Path, *, device: str, threads: int, variant: str | None = None) -> TopOnly:
    """Open `order.json` of a folder: {order, exact}."""
    said = json.loads((path / "order.json").read_text())
    return Fixed(said["order"]) if said["exact"] else TopOnly(said["order"])


class Misbehaving(TopOnly):
    """Answers some calls, then does what it is told to."""

    def __init__(self, what: str, after: int) -> None:
        super().__init__([1, 2, 3])
        self.what, self.after = what, after

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        if len(self.calls) >= self.after:
            misbehave(self.what)
        return super().top_k(history, k)


def misbehave(what: str) -> None:
    print("last words", file=sys.stderr, flush=True)
    if what == "raise":
        raise ValueError("the planted\nerror")
    if what == "input":
        raise InputError("the planted input error", where="here", fix="mend it")
    if what == "hang":
        threading.Event().wait()
    if what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)


def open_misbehaving(
    path: Path, *, device: str, threads: int, what: str, after: int = 0, opens: bool = True
) -> TopOnly:
    """Misbehaves when it is opened, or in the call with the number `after`."""
    if not opens:
        misbehave(what)
    return Misbehaving(what, after)


class Noisy(TopOnly):
    """Prints while it recommends."""

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        print("noise on standard output")
        return super().top_k(history, k)


def open_telling(path: Path, *, device: str, threads: int) -> TopOnly:
    """Writes what its process looks like to `path`."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND")
    path.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "cores": cores,
                "device": device,
                "threads": threads,
                "environment": {name: os.environ.get(name) for name in names},
                "torch": "torch" in sys.modules,
            }
        )
    )
    return Noisy([1, 2, 3])


def open_with_threads(path: Path, *, device: str, threads: int) -> TopOnly:
    """Sets the threads of the whole process, as a checkpoint does."""
    import torch

    torch.set_num_threads(threads)
    return open_fixed(path, device=device, threads=threads)


def open_on_device(path: Path, *, device: str, threads: int) -> TopOnly:
    """Multiplies matrices with torch on the device before it answers."""
    import torch

    matrix = torch.ones(1024, 1024, device=device)

    class Multiplying(TopOnly):
        def top_k(self, history: HistoryArrays, k: int) -> TopK:
            float((matrix @ matrix).sum())
            return super().top_k(history, k)

    return Multiplying([1, 2, 3])
