"""Kernels and copies of a call, out of what tracing tells."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from bench import answers as subject
from bench import wire
from bench.answers import Answers
from bench.child import ChildFailed
from bench.crew import TWIN
from bench.device_work import DeviceWork, NothingTracedError, cuda_trace, device_work, summed
from bench.latency import Timed, latency
from bench.loads import Load
from bench.timing import _Tracing
from recommender.scoring import HistoryArrays
from tests.bench.simulated_gpu import TRACED
from tests.bench.test_timing import FakeChild, crew_of

WORK = DeviceWork(0.8, 0.01, 0.005, 2048, 256)


def test_copies_stand_apart_from_kernels_and_annotations_count_for_nothing() -> None:
    assert summed(TRACED, 2) == pytest.approx(WORK)


def test_where_no_kernel_is_seen_nothing_is_told() -> None:
    with pytest.raises(NothingTracedError, match="saw no kernel"):
        summed([{"cat": "cpu_op", "name": "aten::mm", "dur": 5.0}, {"ph": "M"}], 1)


def test_one_call_warms_up_and_the_others_are_traced() -> None:
    made: list[str] = []

    def trace(run: Callable[[], object]) -> list[Mapping[str, Any]]:
        made.append("begin")
        run()
        return TRACED

    found = device_work(lambda: made.append("call"), calls=2, trace=trace)
    assert made == ["call", "begin", "call", "call"] and found == pytest.approx(WORK)


def test_a_machine_without_a_gpu_says_why_nothing_was_traced() -> None:
    with pytest.raises(NothingTracedError, match=r"profiler failed|saw no kernel"):
        summed(cuda_trace(lambda: None), 1)


def test_a_child_is_asked_over_its_load_and_may_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Scorer:
        def top_k(self, history: HistoryArrays, k: int) -> None:
            asked.append(len(history.items))

    child = Answers()
    child.scorer = Scorer()  # type: ignore[assignment]
    child.batches = [HistoryArrays(np.ones((users, 2), dtype=np.int64)) for users in (1, 2)]
    order = wire.Message({"order": "device-work", "k": 2, "calls": 3})

    def told(run: Callable[[], object], *, calls: int) -> DeviceWork:
        for _ in range(calls):
            run()
        return WORK

    monkeypatch.setattr(subject, "device_work", told)
    assert child.to(order).header == {"work": WORK._asdict(), "missing": None} and asked == [1, 2, 1]

    def unknown(run: Callable[[], object], *, calls: int) -> DeviceWork:
        raise NothingTracedError("it is not allowed")

    monkeypatch.setattr(subject, "device_work", unknown)
    assert child.to(order).header == {"work": None, "missing": "it is not allowed"}


class OnGpu(FakeChild):
    """A child whose GPU can be traced, or cannot."""

    says: DeviceWork | str | ChildFailed = WORK

    def device_work(self, k: int, *, calls: int, seconds: float) -> DeviceWork | str:
        if isinstance(self.says, ChildFailed):
            raise self.says
        return self.says


def test_only_candidates_on_a_gpu_are_traced_and_one_that_cannot_be_is_noted_once() -> None:
    fine, mute, twin, cpu = OnGpu("fine"), OnGpu("mute"), OnGpu("fine" + TWIN), OnGpu("cpu")
    mute.says = "it is not allowed"
    tracing, crew = _Tracing({"fine": "cuda", "mute": "cuda:1", "cpu": "cpu"}), crew_of(fine, mute, twin, cpu)
    assert [tracing.measure(crew, 2) for _ in range(2)] == [{"fine": WORK}] * 2
    assert tracing.notes == ["Copies and kernels of mute were not measured: it is not allowed."]
    assert len(crew.children) == 4


def test_a_child_that_crashes_while_it_is_traced_is_left_out() -> None:
    broken = OnGpu("broken")
    broken.says = ChildFailed("crashed", "was ended by SIGSEGV")
    crew = crew_of(broken)
    assert _Tracing({"broken": "cuda"}).measure(crew, 2) == {} and "broken" in crew.failures


def test_the_work_stands_beside_the_latency() -> None:
    load = Load("full", 1, [HistoryArrays(np.ones((1, 2), dtype=np.int64))])
    seconds = {"gpu": np.array([0.002]), "cpu": np.array([0.002])}
    timed = Timed(load, 1, seconds, work={"gpu": WORK})
    assert latency(timed, "gpu").model_dump(include=set(WORK._fields)) == WORK._asdict()
    assert latency(timed, "cpu").kernels_ms is None


@pytest.mark.gpu
def test_a_real_gpu_is_seen_to_copy_and_multiply() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    there = torch.randn(1024, 1024)
    found = device_work(lambda: (there.to("cuda") @ there.to("cuda")).cpu(), calls=2)
    assert found.to_device_bytes == 2 * found.to_host_bytes == 2 * 4 * 1024 * 1024
    assert min(found) > 0
