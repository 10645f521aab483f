"""Peaks and bounds of a GPU: the logic on the processor, by hand where numbers are known."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.attained import roofline_section
from bench.candidates import resolve
from bench.child import ChildFailed
from bench.gpu_peaks import PRECISIONS, CudaClock, GpuBench, WallClock, multiplying
from bench.gpu_roofline import GpuPeaks, Trial, gpu_machine, gpu_row, part_precisions, runs_in_tf32
from bench.report import wording
from bench.report.roofline_parts import GpuMachine
from bench.report.roofline_tables import bound_table, gpu_table
from bench.roofline import Measured, mean_work
from recommender.files import read_json, write_json
from tests.bench.fakes import artifact, checkpoint
from tests.bench.test_attained import evidence, formulas, load, timed

TRIALS = [
    Trial("bandwidth", "copy, read and write", "fp32", None, [2e9, 1e9]),
    Trial("gemm", "mm", "fp32", (8, 8, 8), [1e10]),
    Trial("gemm", "mm", "tf32", (8, 8, 8), [5e10]),
    Trial("gemm", "mm", "bf16", (8, 8, 8), [0.5e11, 1e11]),
]


def gpu() -> GpuMachine:
    found = gpu_machine(TRIALS, device="cuda", name="Some GPU", buffer_bytes=1 << 20)
    assert found is not None
    return found


def test_every_precision_is_multiplied_and_every_peak_is_a_rate() -> None:
    runs: list[int] = []

    class Clock(WallClock):
        def seconds(self, run: Callable[[], object], times: int) -> float:
            runs.append(times)
            return super().seconds(run, times)

    bench = GpuBench("cpu")
    bench.clock = Clock()
    before = torch.get_float32_matmul_precision()
    found = bench.rates(buffer_bytes=1 << 12, shapes=[(4, 8, 4)], repeats=2)
    assert [(t.what, t.precision) for t, _ in found] == [
        ("bandwidth", "fp32"), ("bandwidth", "fp32"), *(("gemm", each) for each in PRECISIONS),
    ]  # fmt: skip
    assert all(len(rates) == 2 and min(rates) > 0 for _, rates in found)
    assert len(runs) == 3 * len(found), "one run tells how often the two measurements repeat it"
    assert torch.get_float32_matmul_precision() == before
    assert found[0][0].work == 2 * found[1][0].work == 2 * (1 << 12)


def test_products_are_of_the_type_that_is_named() -> None:
    for precision, kind in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        trial = multiplying((4, 8, 2), precision, "cpu")  # type: ignore[arg-type]
        out = trial.run()
        assert isinstance(out, torch.Tensor) and out.dtype == kind and out.shape == (4, 2)
        assert trial.work == 2 * 4 * 8 * 2


def test_the_best_trial_of_each_precision_is_its_peak() -> None:
    found = gpu()
    assert found.bandwidth == 2e9 and found.gemm == {"fp32": 1e10, "tf32": 5e10, "bf16": 1e11}
    assert gpu_machine([], device="cuda", name=None, buffer_bytes=1) is None


def test_each_part_is_held_against_the_peak_of_its_own_precision() -> None:
    """Blocks in bf16: 2 x 10 positions of 1 MFLOP, scoring of 101 rows in fp32."""
    own, cell = formulas(precision="bf16"), load([10, 10])
    works = mean_work(own, cell, 5, 101)
    row = gpu_row("x", timed(cell, x=[0.01]), own, works, gpu(), tf32=False)
    blocks, scoring, top = works["blocks"], works["scoring"], works["top_k"]
    assert row.compute_ms == pytest.approx(
        1e3 * (blocks.flops / 1e11 + (scoring.flops + top.flops) / 1e10), rel=1e-9
    )
    assert row.bandwidth_ms == pytest.approx(1e3 * sum(work.bytes for work in works.values()) / 2e9)
    assert row.bound_ms == max(row.compute_ms or 0, row.bandwidth_ms or 0)
    assert row.share_of_bound == pytest.approx((row.bound_ms or 0) / 10)
    assert (row.precision, row.device, row.share_on_device) == ("bf16", "cuda", None)


def test_time_between_events_has_its_own_share() -> None:
    own, cell = formulas(), load([10])
    measured = replace(timed(cell, x=[0.01]), device_ms={"x": torch.tensor([5.0]).double().numpy()})
    row = gpu_row("x", measured, own, mean_work(own, cell, 5, 101), gpu(), tf32=False)
    assert row.share_on_device == pytest.approx(2 * (row.share_of_bound or 0))


def test_tf32_stands_in_for_float32_only_where_it_is_used() -> None:
    assert set(part_precisions(formulas(), tf32=True).values()) == {"tf32"}
    mixed = part_precisions(formulas(precision="bf16"), tf32=True)
    assert (mixed["blocks"], mixed["scoring"]) == ("bf16", "tf32")
    assert set(part_precisions(formulas(), tf32=False).values()) == {"fp32"}


def test_a_precision_without_a_peak_is_named_and_left_out() -> None:
    own, cell = formulas(precision="int8"), load([10])
    works = mean_work(own, cell, 5, 101)
    row = gpu_row("x", timed(cell, x=[0.01]), own, works, gpu(), tf32=False)
    assert row.without_peak == ["embedding", "blocks", "head"]
    assert row.compute_ms == pytest.approx(1e3 * (works["scoring"].flops + works["top_k"].flops) / 1e10)


def test_the_provider_tensorrt_rounds_to_tf32_unasked_and_torch_and_engines_on_request(
    tmp_path: Path,
) -> None:
    made = {"x": checkpoint(tmp_path / "t", "x", [1]), "y": artifact(tmp_path / "o", "y", [1], of="x")}
    plain, tf32 = resolve(["x"], {1: made}, ["eager", "tf32"])
    assert [runs_in_tf32(each) for each in (plain, tf32)] == [False, True]
    manifest = read_json(made["y"].path / "manifest.json")
    manifest["variants"][0]["graph"] = "fp32.onnx"
    write_json(made["y"].path / "manifest.json", manifest)
    cuda, tensorrt = resolve(["y"], {1: made}, devices=["cuda", "tensorrt"])
    assert [runs_in_tf32(each) for each in (cuda, tensorrt)] == [False, True]
    for flag in (False, True):
        manifest["variants"][0]["engine"] = {"flags": {"tf32": flag}}
        write_json(made["y"].path / "manifest.json", manifest)
        assert runs_in_tf32(cuda) == flag


def test_the_section_holds_rows_of_gpu_and_processor_side_by_side() -> None:
    cell = load([10, 10])
    cells = [timed(cell, here=[0.01], there=[0.001])]
    found = {"here": Measured(formulas()), "there": Measured(formulas(), tf32=False)}
    section = roofline_section(replace(evidence(**found), gpu=gpu()), cells, k=5, rows=101)
    assert [(row.candidate, row.device) for row in section.rows] == [("here", None), ("there", "cuda")]
    header, cells_of = bound_table(section).header, [[c.text for c in r] for r in bound_table(section).rows]
    assert header[-1] == "peak of" and cells_of[-1][-1] == "fp32" and cells_of[0][-1] == wording.ABSENT
    table = gpu_table(section)
    assert "Some GPU" in table.note and len(table.rows) == len(TRIALS)


def test_a_gpu_that_was_not_measured_gives_no_rows_and_a_caution() -> None:
    cells = [timed(load([10]), there=[0.001])]
    lost = replace(evidence(there=Measured(formulas(), tf32=False)), gpu_failed="was ended by SIGKILL")
    section = roofline_section(lost, cells, k=5, rows=101)
    assert section.rows == [] and section.gpu is None
    assert any("was ended by SIGKILL" in text for text in section.cautions)
    assert gpu_table(section).rows == []


def test_what_was_measured_before_a_failure_stands() -> None:
    class Said:
        def __init__(self) -> None:
            self.orders: list[Any] = []

        def ask(self, order: Any, **_: Any) -> Any:
            self.orders.append(order)
            if len(self.orders) == 2:
                raise ChildFailed("crashed", "ended with exit code 1")
            trial = {
                "what": "gemm",
                "how": "mm",
                "precision": "bf16",
                "shape": [8, 8, 8],
                "rates": [1.0, 2.0],
            }
            return {"trials": [trial | {"rates": [1.0, 2.0]}]}

        def end(self) -> None:
            pass

    peaks = GpuPeaks("cuda", threads=1, cores=(), seconds=5, repeats=2, square=8)
    peaks.child.end()
    peaks.child = said = Said()  # type: ignore[assignment]
    for _ in range(3):
        peaks.measure([(2, 3, 4)])
    assert len(said.orders) == 2 and said.orders[0]["shapes"] == [(8, 8, 8), (2, 3, 4)]
    assert peaks.failed == "ended with exit code 1"
    assert peaks.trials() == [Trial("gemm", "mm", "bf16", (8, 8, 8), [1.0, 2.0])]


def test_events_stand_around_all_runs_and_nothing_is_pending_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("wait for the event")

        def elapsed_time(self, other: "Event") -> float:
            return 1500.0

    def on(device: str) -> AbstractContextManager[None]:
        said.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("synchronize"))
    assert CudaClock("cuda:1").seconds(lambda: said.append("run"), 2) == 1.5
    assert said == ["cuda:1", "synchronize", "record", "run", "run", "record", "wait for the event"]


@pytest.mark.gpu
def test_a_real_gpu_multiplies_faster_in_bf16_than_in_float32() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    found = GpuBench("cuda").rates(buffer_bytes=1 << 28, shapes=[(4096,) * 3], repeats=3)
    best = {trial.precision: max(rates) for trial, rates in found if trial.what == "gemm"}
    assert best["bf16"] > best["fp32"]
