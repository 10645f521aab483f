"""Running an engine: its answers, its calls in order, what it refuses. TensorRT is a stand-in here."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import export.tensorrt
from export.tensorrt import (
    DRIVER,
    Engine,
    EngineError,
    Machine,
    UnfitError,
    check_machine,
    open_engine,
    refit,
)
from tests.export.engines import SEEN, built
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, left_padded
from tests.fakes.device import HERE, CpuDevice

Scoring = dict[str, Path]
FLAGS = {"hardware": "none", "version_compatible": False}


def opened(onnx: Path, folder: Path, *, graphs: bool = True, **asked: Any) -> tuple[Engine, CpuDevice]:
    told = built(onnx, folder / "a.plan", **asked) | {"cuda_graphs": graphs}
    device = CpuDevice()
    return Engine((folder / "a.plan").read_bytes(), told, device), device


def right(onnx: Path, items: Any, seen: Any) -> list[Any]:
    """What onnxruntime answers to the same."""
    given = {
        "items": np.pad(items, ((0, 0), (MAX_LENGTH - items.shape[1], 0))),
        "seen": np.pad(seen, ((0, 0), (0, SEEN - seen.shape[1]))),
    }
    answer: list[Any] = onnxruntime.InferenceSession(onnx).run(["top_items", "scores"], given)
    return answer


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("users", [1, 3, 4, 11])
def test_it_answers_as_the_graph_whatever_the_batch(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, users: int, graphs: bool
) -> None:
    engine, device = opened(scoring["fp32"], tmp_path, graphs=graphs, profiles=((1, 1, 1), (1, 4, 4)))
    assert engine.runtime == "TensorRT 11.4.0.106"
    for seed in range(3):  # memory is used again: what an earlier call left must not be seen
        items = left_padded(users - seed % users, 7 - seed, seed=seed)
        seen = left_padded(len(items), 3, seed=seed)
        found = engine.run(("top_items", "scores"), {"items": items, "seen": seen})
        for one, other in zip(found, right(scoring["fp32"], items, seen), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
        assert [each.dtype for each in found] == [np.int64, np.float32]
    assert (device.captured > 0) is graphs


def test_outputs_come_by_name(fake_trt: ModuleType, scoring: Scoring, tmp_path: Path) -> None:
    engine, _ = opened(scoring["fp32"], tmp_path)
    given = {"items": left_padded(2, 5), "seen": np.zeros((2, 1), np.int64)}
    (scores,) = engine.run(("scores",), given)
    np.testing.assert_array_equal(scores, engine.run(("top_items", "scores"), given)[1])


def test_a_batch_goes_to_the_tightest_profile_in_a_few_sizes(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    engine, device = opened(scoring["fp32"], tmp_path, profiles=((1, 1, 1), (2, 16, 48)))
    assert [engine.place(users) for users in (1, 2, 3, 9, 33, 48)] == [
        (0, 1), (1, 2), (1, 4), (1, 16), (1, 48), (1, 48)
    ]  # fmt: skip
    for users in (1, 3, 4, 3):
        engine.run(("scores",), {"items": left_padded(users, 3), "seen": np.zeros((users, 1), np.int64)})
    assert device.captured == device.streams == 2


def test_threads_share_an_engine(fake_trt: ModuleType, scoring: Scoring, tmp_path: Path) -> None:
    engine, _ = opened(scoring["fp32"], tmp_path)

    def ask(seed: int) -> bool:
        items = left_padded(1 + seed % 3, 5, seed=seed)
        seen = np.zeros((len(items), 1), np.int64)
        found = engine.run(("scores",), {"items": items, "seen": seen})[0]
        return bool(np.allclose(found, right(scoring["fp32"], items, seen)[1], rtol=1e-5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(24)))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            "context",
            "failed at creating an execution context: .fake. no context; .* is the memory of the GPU",
        ),
        ("set profile", "failed at choosing profile 1"),
        ("shape", r"failed at giving items the shape \(2, 12\)"),
        ("infer", r"failed at inferring shapes \(seen missing\)"),
        ("output shape", r"failed at expecting top_items to be \(2, 15\) \(it is \(-1, -1\)\)"),
        ("address", "failed at giving items its memory"),
        ("execute", "failed at executing: .fake. no execute"),
    ],
)
def test_every_refusal_is_an_error(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, step: str, message: str
) -> None:
    engine, _ = opened(scoring["fp32"], tmp_path)
    given = {"items": left_padded(2, 5), "seen": np.zeros((2, 1), np.int64)}
    fake_trt.FAIL.add(step)
    with pytest.raises(EngineError, match=message):
        engine.run(("scores",), given)
    fake_trt.FAIL.clear()
    engine.run(("scores",), given)  # nothing that failed is kept


def test_each_batch_size_has_scratch_memory_of_its_own_size(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    engine, device = opened(scoring["fp32"], tmp_path, profiles=((1, 1, 1), (1, 16, 48)))
    for users in (1, 3, 48, 4):
        engine.run(("scores",), {"items": left_padded(users, 3), "seen": np.zeros((users, 1), np.int64)})
    assert device.scratch == [1024, 4 * 1024, 48 * 1024]  # and not 48 KiB each


def test_a_gpu_without_memory_for_a_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*sizes: int, **_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(EngineError, match=r"no 5,000 bytes free.*`tensorrt.profiles`"):
        export.tensorrt._CudaScratch(5000)


def test_a_call_that_fails_later_is_an_error_too(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    engine, _ = opened(scoring["fp32"], tmp_path, graphs=False)
    given = {"items": left_padded(2, 5), "seen": np.zeros((2, 1), np.int64)}
    engine.run(("scores",), given)
    fake_trt.FAIL.add("execute")
    with pytest.raises(EngineError, match="failed at executing"):
        engine.run(("scores",), given)


def test_rows_that_stand_twice_among_the_seen_need_one_place(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    engine, _ = opened(scoring["fp32"], tmp_path)
    seen = np.array([[5, 0, 5, 6, 5, 6, 0, 7, 8, 9, 1, 2]])  # 12, of which 7 differ
    found = engine.run(("top_items", "scores"), {"items": left_padded(1, 5), "seen": seen})
    wanted = right(scoring["fp32"], left_padded(1, 5), np.unique(seen)[None])
    np.testing.assert_array_equal(found[0], wanted[0])
    with pytest.raises(
        EngineError, match=r"9 rows must not come back, but the engine takes 8.*tensorrt\.seen: 9"
    ):
        engine.run(("scores",), {"items": left_padded(1, 5), "seen": np.arange(1, 10)[None]})


def test_histories_beyond_its_length_are_refused(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    engine, _ = opened(scoring["fp32"], tmp_path)
    with pytest.raises(EngineError, match="13 items are longer than the 12"):
        engine.run(("scores",), {"items": left_padded(1, 13), "seen": np.zeros((1, 1), np.int64)})


@pytest.mark.parametrize("compatible", [False, True])
def test_a_refitted_engine_answers_with_the_new_table(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, compatible: bool
) -> None:
    asked: dict[str, Any] = {"refittable": ("item_table", "rows"), "version_compatible": compatible}
    told = built(scoring["spare"], tmp_path / "a.plan", **asked)
    engine = Engine((tmp_path / "a.plan").read_bytes(), told, CpuDevice())
    plan, given = tmp_path / "a.plan", {"items": left_padded(4, 6), "seen": np.zeros((4, 1), np.int64)}
    before = engine.run(("top_items", "scores"), given)
    assert before[0].max() <= N_ITEMS  # spare rows never come back
    table = fake_trt.weights_of(plan.read_bytes(), "item_table")
    rows = fake_trt.weights_of(plan.read_bytes(), "rows").copy()
    table = table.copy()
    table[N_ITEMS + 1], rows[0, N_ITEMS + 1] = 100 * table[3], 0  # one item more
    new = {"item_table": ("FLOAT", table), "rows": ("FLOAT", rows)}
    refit(plan, tmp_path / "b.plan", new, told=told, device=CpuDevice())
    after = Engine((tmp_path / "b.plan").read_bytes(), told, CpuDevice()).run(("top_items", "scores"), given)
    assert (after[0] == N_ITEMS + 1).any()
    again = tmp_path / "c.plan"
    refit(tmp_path / "b.plan", again, {"rows": ("FLOAT", rows)}, told=told, device=CpuDevice())
    assert again.exists()  # and can be refitted once more
    with pytest.raises(UnfitError, match="here Other"):
        refit(plan, again, {}, told=told, device=CpuDevice(HERE._replace(gpu="Other")))


@pytest.mark.parametrize(
    ("flags", "here", "fault"),
    [
        ({}, {}, None),
        ({}, {"gpu": "Other"}, r"GPU Fake H200 \(9.0\), here Other \(9.0\)"),
        ({}, {"tensorrt": "11.4.1"}, r"TensorRT 11.4.0.106, here 11.4.1"),
        ({}, {"driver": "590.1"}, r"driver 580.65.06, here 590.1"),
        ({}, {"driver": ""}, None),  # nobody can tell
        ({"hardware": "same-compute-capability"}, {"gpu": "Other"}, None),
        ({"hardware": "same-compute-capability"}, {"capability": "9.1"}, "compute capability 9.0, here 9.1"),
        ({"hardware": "ampere-plus"}, {"gpu": "Other", "capability": "8.6"}, None),
        ({"hardware": "ampere-plus"}, {"capability": "10.0"}, None),
        ({"hardware": "ampere-plus"}, {"capability": "7.5"}, "GPUs from compute capability 8.0 on, here 7.5"),
        ({"version_compatible": True}, {"tensorrt": "11.5.0", "driver": "590.1"}, None),
        ({"version_compatible": True}, {"tensorrt": "10.13.0"}, "TensorRT 11.4.0.106, here 10.13.0"),
        ({"version_compatible": True}, {"driver": "535.1"}, "driver 580.65.06, here 535.1"),
    ],
)
def test_an_engine_for_another_machine_is_refused(
    flags: dict[str, Any], here: dict[str, str], fault: str | None
) -> None:
    machine = Machine(**(HERE._asdict() | here))
    if fault is None:
        check_machine(HERE._asdict(), FLAGS | flags, machine)
        return
    with pytest.raises(UnfitError, match=rf"was built for {fault}; export it again on this machine"):
        check_machine(HERE._asdict(), FLAGS | flags, machine)


def test_it_is_refused_before_it_is_deserialized(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = built(scoring["fp32"], tmp_path / "a.plan")
    assert open_engine(tmp_path / "a.plan", {"engine": told}, None, "cuda").length == MAX_LENGTH
    fake_trt.reset()
    elsewhere = CpuDevice(HERE._replace(gpu="Other"))
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: elsewhere)
    with pytest.raises(UnfitError, match="here Other"):
        open_engine(tmp_path / "a.plan", {"engine": told}, None, "cuda")
    assert not fake_trt.CALLS
    with pytest.raises(UnfitError, match="on a GPU, not on the device 'cpu'"):
        open_engine(tmp_path / "a.plan", {"engine": told}, None, "cpu")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), {}),
        ((), None),
        ((), "built"),
        (("machine",), {"gpu": "Fake H200"}),
        (("machine", "another"), "x"),
        (("machine", "gpu"), None),
        (("flags",), {}),
        (("flags",), {"hardware": "none"}),
        (("flags", "version_compatible"), "no"),
        (("profiles",), []),
        (("profiles",), [[1, 2]]),
        (("length",), "12"),
        (("top_k",), None),
    ],
)
def test_an_engine_whose_entry_is_damaged_is_refused(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, place: tuple[str, ...], value: Any
) -> None:
    entry: dict[str, Any] = {"engine": json.loads(json.dumps(built(scoring["fp32"], tmp_path / "a.plan")))}
    inside = entry
    for name in ("engine", *place)[:-1]:
        inside = inside[name]
    inside[("engine", *place)[-1]] = value
    with pytest.raises(
        EngineError, match=r"does not say what it was built for \(.*\); export the artifact"
    ) as caught:
        open_engine(tmp_path / "a.plan", entry, None, "cuda")
    assert caught.type is EngineError  # no other machine opens it either


def test_code_within_a_plan_is_run_only_where_it_was_asked_for(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    told = built(scoring["fp32"], tmp_path / "a.plan", version_compatible=True)
    content = (tmp_path / "a.plan").read_bytes()
    Engine(content, told, CpuDevice())
    with pytest.raises(EngineError, match="failed at deserializing"):
        Engine(content, told | {"flags": FLAGS}, CpuDevice())


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:19:27 2025\nGCC 12.3\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root)\n",
    ],
)
def test_the_driver_is_read_from_the_kernel(text: str, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(text)
    assert export.tensorrt.driver(tmp_path / "version") == "580.65.06"
    assert export.tensorrt.driver(tmp_path / "none") == ""
    assert DRIVER.parts[1] == "proc"
