"""One candidate in a process of its own: started, asked with a time limit, and ended, whatever it does."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench import wire
from bench.device_work import DeviceWork
from bench.open_loop import OpenLoopSamples
from recommender.errors import InputError
from recommender.scoring import HistoryArrays, ScorerRef

TAIL_LINES = 8
TAIL_BYTES = 2000
LAST_WORDS_SECONDS = 5.0
"""For a process that has closed its pipe to end."""


@dataclass(frozen=True)
class Call:
    """One call, timed by the child itself."""

    ns: int
    device_ms: float | None  # between two CUDA events
    rested: bool  # its threads were at rest when it answered
    waited_ns: int = 0  # its threads were ready to run, but had no core


Failing = Literal["raised", "crashed", "hung"]


class ChildFailed(Exception):
    """A child raised, crashed or hung; it has been ended. The text says what happened."""

    def __init__(self, how: Failing, text: str) -> None:
        self.how, self.text = how, text
        super().__init__(text)


class Child:
    """A process that holds one candidate. Every method raises ChildFailed, and InputError for bad input.

    `cores`: where it may run; () where the system pins nothing. `threads`: of one call.
    """

    def __init__(self, name: str, *, threads: int, cores: Sequence[int]) -> None:
        self.name, self.threads = name, threads
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", "-m", "bench.worker",
             str(os.getpid()), ",".join(map(str, cores))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
            env=environment_of_child(threads), process_group=0,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def open(self, ref: ScorerRef, *, device: str, seconds: float) -> float:
        """Open the candidate; seconds that it took, without the start of the interpreter."""
        order = {
            "order": "open", "ref": as_plain(ref), "device": device, "threads": self.threads,
            "events": device.startswith("cuda") and ref.runtime == "torch",
        }  # fmt: skip
        return float(self.ask(order, seconds=seconds, doing="while it was opened")["ns"]) / 1e9

    def load(self, batches: Sequence[HistoryArrays], *, seconds: float) -> None:
        """Send the batches that later calls name by their number."""
        names, arrays = wire.pack(batches)
        self.ask({"order": "load", "batches": names}, arrays, seconds=seconds, doing="while it took a load")

    def call(self, batch: int, k: int, *, seconds: float) -> Call:
        """Recommend to one batch of the load."""
        said = self.ask({"order": "call", "batch": batch, "k": k}, seconds=seconds, doing="in a call")
        return Call(int(said["ns"]), said["device_ms"], bool(said["rested"]), int(said["waited_ns"]))

    def burst(self, k: int, *, lasting: float, seconds: float) -> tuple[float, int]:
        """Calls one after the other for `lasting` seconds: (seconds they took, users they answered)."""
        order = {"order": "burst", "k": k, "seconds": lasting}
        said = self.ask(order, seconds=lasting + seconds, doing="in a run of calls")
        return float(said["ns"]) / 1e9, int(said["users"])

    def open_loop(
        self, *, k: int, rate: float, lasting: float, batch: int, seed: int, seconds: float
    ) -> OpenLoopSamples:
        """Requests at a rate for `lasting` seconds out of the load, whose batches hold one user each.

        `seconds`: for what is not part of that time, the calls that warm up and the one that ends last.
        """
        order = {
            "order": "open-loop", "k": k, "rate": rate, "seconds": lasting, "batch": batch, "seed": seed
        }  # fmt: skip
        limit = 2 * lasting + seconds  # what waits when the window ends is answered for as long again
        answer = self.answer(wire.Message(order), seconds=limit, doing=f"at {rate:g} requests per second")
        arrived, answered, sizes, durations = answer.arrays
        return OpenLoopSamples(
            rate=float(answer.header["rate"]),
            seconds=float(answer.header["seconds"]),
            batch=int(answer.header["batch"]),
            length=float(answer.header["length"]),
            arrived=arrived,
            answered=answered,
            call_sizes=sizes,
            call_seconds=durations,
        )

    def device_work(self, k: int, *, calls: int, seconds: float) -> DeviceWork | str:
        """What a call over the load has the GPU do, mean over `calls`; or why that is not known."""
        order = {"order": "device-work", "k": k, "calls": calls}
        said = self.ask(order, seconds=(calls + 1) * seconds, doing="while its work on the GPU was traced")
        return str(said["missing"]) if said["work"] is None else DeviceWork(**said["work"])

    def peak(self, *, seconds: float) -> tuple[int, int | None]:
        """(largest resident size so far, largest memory that torch had on the GPU), bytes."""
        said = self.ask({"order": "peak"}, seconds=seconds, doing="when it was asked for its memory")
        return int(said["bytes"]), said["device_bytes"]

    def ask(
        self, order: Mapping[str, Any], arrays: Sequence[wire.Array] = (), *, seconds: float, doing: str
    ) -> Mapping[str, Any]:
        """The header of the answer to an order; see `answer`."""
        return self.answer(wire.Message(order, tuple(arrays)), seconds=seconds, doing=doing).header

    def answer(self, order: wire.Message, *, seconds: float, doing: str) -> wire.Message:
        """The answer to an order. `doing` completes the sentences that tell of a failure."""
        until = time.monotonic() + seconds
        try:
            self._send(wire.encode(order), until)
            answer = wire.decode(lambda count: self._receive(count, until))
        except TimeoutError:
            raise self._failed("hung", f"gave no answer within {seconds:g} s {doing}") from None
        except (EOFError, BrokenPipeError):
            raise self._failed("crashed", f"{self._cause_of_death()} {doing}") from None
        except BaseException:
            self.end()
            raise
        error = answer.header.get("error")
        if error is None:
            return answer
        if "input" in error:
            self.end()
            raise InputError(**error["input"])
        raise self._failed("raised", f"raised {doing}: {error['text']}")

    def end(self) -> None:
        """End the process and all that it started; does nothing to one that has ended."""
        if self._process.returncode is None:
            _kill_group(self._process.pid)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _failed(self, how: Failing, text: str) -> ChildFailed:
        """End the process; the error that tells of it, with the last lines of its standard error."""
        if self._process.returncode is None:
            _kill_group(self._process.pid)
            self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - TAIL_BYTES))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
        self.end()
        words = " | ".join(line.strip() for line in lines)
        return ChildFailed(how, f"{text}; its last words: {words}" if words else text)

    def _send(self, data: bytes, until: float) -> None:
        left = memoryview(data)
        while left:
            _wait(self._to, selectors.EVENT_WRITE, until)
            left = left[os.write(self._to, left) :]

    def _receive(self, count: int, until: float) -> bytes:
        parts = []
        while count:
            _wait(self._from, selectors.EVENT_READ, until)
            part = os.read(self._from, min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _cause_of_death(self) -> str:
        """How the process ended, once it has."""
        try:
            code = self._process.wait(LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        _kill_group(self._process.pid)  # what it started may have outlived it
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def as_plain(ref: ScorerRef) -> dict[str, Any]:
    """A way to open a scorer as a message holds it."""
    return {
        "name": ref.name, "kind": ref.kind, "runtime": ref.runtime, "path": str(ref.path),
        "opener": ref.opener, "options": dict(ref.options),
    }  # fmt: skip


def environment_of_child(threads: int) -> dict[str, str]:
    """The parent's environment with its module path, and thread pools of this size that do not spin.

    Affinity that the parent's environment asks for is left out: the child is pinned already.
    """
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
    fight = {"GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_SPINCOUNT"}
    return {
        **{key: value for key, value in os.environ.items() if key not in fight},
        **{f"{pool}_NUM_THREADS": str(threads) for pool in pools},
        "POLARS_MAX_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path),
    }


def _wait(descriptor: int, event: int, until: float) -> None:
    """Until a pipe is ready. Raises TimeoutError."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, event)
        if not selector.select(max(0.0, until - time.monotonic())):
            raise TimeoutError


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(group, signal.SIGKILL)
