import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import wire
from bench.answers import Answers, serve
from bench.child import Child
from recommender.scoring import HistoryArrays, ScorerRef, TopK

BATCH = HistoryArrays(np.array([[1, 2]]))


@dataclass
class Recorder:
    """A scorer that notes when it is called."""

    log: list[str] = field(default_factory=list)

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        self.log.append("call")
        return TopK(np.zeros((1, k), dtype=np.int64), np.zeros((1, k), dtype=np.float32))


def answers(scorer: Recorder, *, events: bool = False) -> Answers:
    made = Answers()
    made.scorer, made.batches, made.events = scorer, [BATCH], events
    return made


def test_cuda_events_stand_directly_around_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    scorer = Recorder()
    made: list[str] = []

    class Event:
        """A fake: it shows the order of calls, its times mean nothing."""

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.name = ("before", "after")[len(made)]
            made.append(self.name)

        def record(self) -> None:
            scorer.log.append(f"record {self.name}")

        def synchronize(self) -> None:
            scorer.log.append(f"wait for {self.name}")

        def elapsed_time(self, other: "Event") -> float:
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: scorer.log.append("wait for all"))
    answer = answers(scorer, events=True).to(wire.Message({"order": "call", "batch": 0, "k": 1}))
    assert answer.header["device_ms"] == 2.5
    assert scorer.log == ["wait for all", "record before", "call", "record after", "wait for after"]


def test_without_events_there_is_no_device_time() -> None:
    scorer = Recorder()
    answer = answers(scorer).to(wire.Message({"order": "call", "batch": 0, "k": 1}))
    assert answer.header["device_ms"] is None and scorer.log == ["call"]


def test_an_order_that_fails_is_answered_and_the_next_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    orders: list[dict[str, Any]] = [
        {"order": "call", "batch": 0, "k": 1},  # nothing is open
        {"order": "peak"},
    ]
    out = io.BytesIO()
    serve(io.BytesIO(b"".join(wire.encode(wire.Message(order)) for order in orders)), out)
    stream = io.BytesIO(out.getvalue())
    first, second = wire.decode(stream.read), wire.decode(stream.read)
    assert first.header["error"]["text"] == "RuntimeError: no candidate is open"
    assert second.header["bytes"] > 1 << 20 and not stream.read()
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_both_clocks_and_the_memory_of_the_device_are_told(tmp_path: Path) -> None:
    child = Child("x", threads=1, cores=())
    try:
        ref = ScorerRef("x", "checkpoint", "torch", tmp_path, "tests.bench.scorers:open_on_device")
        child.open(ref, device="cuda", seconds=300)
        child.load([BATCH], seconds=60)
        found = child.call(0, 1, seconds=60)
        assert found.device_ms is not None and found.device_ms > 0
        assert (child.peak(seconds=60)[1] or 0) >= 4 << 20
    finally:
        child.end()
