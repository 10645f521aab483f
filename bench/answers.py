"""What a child of the bench can be asked: open the candidate, take a load, time one call, say its peak.

Children of the roofline are asked to take calls apart, or what the machine does at best.

The order of a conversation is the parent's affair. Every answer is sent when the child's own threads have
come to rest, so that the next candidate has the cores to itself.
"""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bench import open_loop, process, wire
from bench.apart import TakenApart
from bench.device_work import NothingTracedError, device_work
from bench.gpu_peaks import GpuBench
from bench.peaks import Bench
from recommender.errors import InputError
from recommender.scoring import HistoryArrays, Scorer, ScorerRef

Said = Mapping[str, Any]


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Answer one order after the other until they end; an order that fails is answered with its error."""

    def read(count: int) -> bytes:
        data = orders.read(count)
        if len(data) < count:
            raise EOFError
        return data

    answering = Answers()
    while True:
        try:
            order = wire.decode(read)
        except EOFError:
            return
        try:
            answer = answering.to(order)
        except Exception as error:  # whatever a candidate raises is an answer
            traceback.print_exc()
            answer = wire.Message({"error": _told(error)})
        rested = process.settled()
        answers.write(wire.encode(answer._replace(header={**answer.header, "rested": rested})))
        answers.flush()


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, InputError):
        return {"input": {"what": error.what, "where": error.where, "fix": error.fix}}
    return {"text": " ".join(f"{type(error).__name__}: {error}".split())}


class Answers:
    """One candidate and the load that it was sent last."""

    def __init__(self) -> None:
        self.scorer: Scorer | None = None
        self.batches: list[HistoryArrays] = []
        self.events = False
        self.apart: TakenApart | None = None
        self.machine: Bench | None = None
        self.orders: dict[str, Callable[[Said, wire.Message], wire.Message]] = {
            "open": self._open,
            "load": self._load,
            "call": self._call,
            "burst": self._burst,
            "open-loop": self._open_loop,
            "peak": self._peak,
            "device-work": self._device_work,
            "trace": self._trace,
            "split": self._split,
            "machine": self._machine,
            "gpu": self._gpu,
        }

    def to(self, order: wire.Message) -> wire.Message:
        """The answer to an order."""
        return self.orders[order.header["order"]](order.header, order)

    def _open(self, said: Said, order: wire.Message) -> wire.Message:
        """{ref, device, threads, events} -> {ns}: nanoseconds of opening; nothing is collected afterwards."""
        ref = _ref(said)
        if said["events"] and ":" in said["device"]:
            import torch

            torch.cuda.set_device(said["device"])  # of events, and of the memory that is asked for
        started = time.perf_counter_ns()
        self.scorer = ref.open(device=said["device"], threads=said["threads"])
        took = time.perf_counter_ns() - started
        self.events = bool(said["events"])
        gc.collect()
        gc.freeze()
        gc.disable()
        return wire.Message({"ns": took})

    def _load(self, said: Said, order: wire.Message) -> wire.Message:
        """{batches} and their arrays -> {}: what the calls after this take their batches from."""
        self.batches = wire.unpack(said["batches"], order.arrays)
        gc.collect()
        return wire.Message({})

    def _call(self, said: Said, order: wire.Message) -> wire.Message:
        """{batch, k} -> {ns, device_ms, waited_ns}: of one call; device_ms between CUDA events, or null."""
        scorer, batch, k = self._scorer(), self.batches[said["batch"]], said["k"]
        before = process.waited_ns()
        timed = self._between_events if self.events else self._on_the_clock
        took, device_ms = timed(scorer, batch, k)
        waited = max(0, process.waited_ns() - before)
        return wire.Message({"ns": took, "device_ms": device_ms, "waited_ns": waited})

    @staticmethod
    def _on_the_clock(scorer: Scorer, batch: HistoryArrays, k: int) -> tuple[int, None]:
        started = time.perf_counter_ns()
        scorer.top_k(batch, k)
        return time.perf_counter_ns() - started, None

    @staticmethod
    def _between_events(scorer: Scorer, batch: HistoryArrays, k: int) -> tuple[int, float]:
        import torch

        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        before.record()
        started = time.perf_counter_ns()
        scorer.top_k(batch, k)
        after.record()
        after.synchronize()
        took = time.perf_counter_ns() - started
        return took, before.elapsed_time(after)

    def _burst(self, said: Said, order: wire.Message) -> wire.Message:
        """{seconds, k} -> {ns, users}: calls one after the other for at least that long."""
        scorer, users, number = self._scorer(), 0, 0
        started = now = time.perf_counter_ns()
        while not number or now - started < said["seconds"] * 1e9:
            batch = self.batches[number % len(self.batches)]
            scorer.top_k(batch, said["k"])
            users += len(batch.items)
            number += 1
            now = time.perf_counter_ns()
        return wire.Message({"ns": now - started, "users": users})

    def _open_loop(self, said: Said, order: wire.Message) -> wire.Message:
        """{k, rate, seconds, batch, seed} -> samples of `bench.open_loop.serve` over the load."""
        settings = {name: said[name] for name in ("k", "rate", "seconds", "batch", "seed")}
        gc.enable()  # as in a server
        try:
            found = open_loop.serve(self._scorer(), self.batches, **settings)
        finally:
            gc.disable()
        header = {name: getattr(found, name) for name in ("rate", "seconds", "batch", "length")}
        arrays = (found.arrived, found.answered, found.call_sizes, found.call_seconds)
        return wire.Message(header, arrays)

    def _peak(self, said: Said, order: wire.Message) -> wire.Message:
        """{} -> {bytes, device_bytes}: largest resident size so far, and what torch had on the GPU."""
        torch = sys.modules.get("torch")
        on_device = torch is not None and torch.cuda.is_initialized()
        device = torch.cuda.max_memory_allocated() if torch is not None and on_device else None
        known = device or None  # 0: torch is there, and another library does the work
        return wire.Message({"bytes": process.peak_memory_bytes(), "device_bytes": known})

    def _device_work(self, said: Said, order: wire.Message) -> wire.Message:
        """{k, calls} -> {work, missing}: what a call has the GPU do, or why nobody knows."""
        scorer, number = self._scorer(), 0

        def call() -> None:
            nonlocal number
            scorer.top_k(self.batches[number % len(self.batches)], said["k"])
            number += 1

        try:
            found = device_work(call, calls=said["calls"])
        except NothingTracedError as error:
            return wire.Message({"work": None, "missing": str(error)})
        return wire.Message({"work": found._asdict(), "missing": None})

    def _trace(self, said: Said, order: wire.Message) -> wire.Message:
        """{ref, device, threads} -> {how, formulas}: how calls can be taken apart; what they cost."""
        self.apart = TakenApart(_ref(said), device=said["device"], threads=said["threads"])
        return wire.Message({"how": self.apart.how, "formulas": self.apart.formulas()})

    def _split(self, said: Said, order: wire.Message) -> wire.Message:
        """{k, calls, seconds, rows} -> what `TakenApart.split` gives, over the load."""
        if self.apart is None:
            raise RuntimeError("no candidate is open to be taken apart")
        settings = {name: said[name] for name in ("k", "calls", "seconds", "rows")}
        return wire.Message(self.apart.split(self.batches, **settings))

    def _machine(self, said: Said, order: wire.Message) -> wire.Message:
        """{threads, buffer_bytes, shapes, repeats} -> {trials}: rates of every way to reach a peak."""
        self.machine = self.machine or Bench(said["threads"])
        return _trials(self.machine, said, ("what", "library", "how", "shape"))

    def _gpu(self, said: Said, order: wire.Message) -> wire.Message:
        """{device, buffer_bytes, shapes, repeats} -> {trials}: the same of a GPU, in every precision."""
        return _trials(GpuBench(said["device"]), said, ("what", "how", "precision", "shape"))

    def _scorer(self) -> Scorer:
        if self.scorer is None:
            raise RuntimeError("no candidate is open")
        return self.scorer


def _ref(said: Said) -> ScorerRef:
    return ScorerRef(**{**said["ref"], "path": Path(said["ref"]["path"])})


def _trials(bench: Bench | GpuBench, said: Said, told: Sequence[str]) -> wire.Message:
    """{trials}: `told` of each way to reach a peak, and the rates that it came to."""
    found = bench.rates(
        buffer_bytes=said["buffer_bytes"],
        shapes=[(m, k, n) for m, k, n in said["shapes"]],
        repeats=said["repeats"],
    )
    named = [{name: getattr(trial, name) for name in told} | {"rates": rates} for trial, rates in found]
    return wire.Message({"trials": named})
