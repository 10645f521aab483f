"""Opening and running packages without a compiler or a GPU: machines, shapes of CUDA graphs, threads."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import aot
from export.aot import Graphs, Package, check_machine, instructions, machine, open_engine

OUTPUTS = ("top_items", "scores")


@pytest.fixture
def cpu_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CPU that is described by a file."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(aot, "CPU_INFO", path)
    path.write_text(
        "processor : 0\nmodel name\t: Xeon A\n"
        "flags\t\t: fpu avx2 avx512f amx_tile avx512_vp2intersect sse4_2 vme\n\n"
    )
    return path


def test_this_machine_may_run_what_it_compiled() -> None:
    check_machine(machine("cpu"), "cpu")


def test_the_instruction_sets_that_a_compiler_may_use_are_told(cpu_info: Path) -> None:
    assert instructions() == ["avx2", "avx512f", "sse4_2"]
    assert machine("cpu")["cpu"] == "Xeon A"
    cpu_info.write_text("Features : fp asimd sve bf16\n")
    assert instructions() == ["asimd", "bf16", "sve"]


def test_a_cpu_without_some_of_them_is_refused_by_both_names(cpu_info: Path) -> None:
    told = machine("cpu")
    cpu_info.write_text("model name: Old B\nflags : fpu avx2 sse4_2\n")
    with pytest.raises(ValueError, match=r"compiled on Xeon A .*avx512f, which this CPU \(Old B\) does not"):
        check_machine(told, "cpu")
    cpu_info.write_text("model name: New C\nflags : avx2 sse4_2 avx512f avx512_bf16\n")
    check_machine(told, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": "riscv64"}, "compiled for linux on riscv64, this is linux on "),
        ({"device": "cuda"}, "does not say what it was compiled for"),
        ({"device": "cuda", "gpu": "H200", "capability": "9.0", "cuda": "13.0"}, "for cuda, not for cpu"),
    ],
)
def test_other_machines_are_refused(change: dict[str, str], message: str) -> None:
    told = machine("cpu") | {"platform": "linux"} | change
    with pytest.raises(ValueError, match=message):
        check_machine(told, "cpu")
    del told["instructions"]
    with pytest.raises(ValueError, match=r"'instructions'.*export the artifact again"):
        check_machine(told, "cpu")


def gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], cuda: str) -> dict[str, Any]:
    """Stand in a GPU; what is told of code that is compiled for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    return machine("cuda")


def test_another_gpu_or_cuda_is_refused_by_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    told = gpu(monkeypatch, "NVIDIA H200", (9, 0), "13.0")
    gpu(monkeypatch, "NVIDIA H100", (9, 0), "13.2")
    check_machine(told, "cuda")  # the same kind
    for other in (("NVIDIA A100", (8, 0), "13.0"), ("NVIDIA H200", (9, 0), "12.8")):
        gpu(monkeypatch, *other)
        words = rf"NVIDIA H200 \(compute capability 9.0, CUDA 13.0\), this is {other[0]} \(.*CUDA {other[2]}"
        with pytest.raises(ValueError, match=words):
            check_machine(told, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"compiled for NVIDIA H200 .* sees no CUDA device here"):
        check_machine(told, "cuda")


def test_a_torch_that_cannot_load_it_is_named_with_the_one_that_made_it(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"no package" * 20)
    entry = {"compiled": machine("cpu") | {"torch": "9.9"}, "max_length": 5, "top_k": 3}
    with pytest.raises(
        ValueError, match=rf"torch {re.escape(torch.__version__)} cannot load it .*with torch 9\.9"
    ):
        open_engine(tmp_path / "a.pt2", entry, None, "cpu")
    with pytest.raises(ValueError, match="does not say what it was compiled for"):
        open_engine(tmp_path / "a.pt2", {"max_length": 5, "top_k": 3}, None, "cpu")


def doubled(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    items, seen = inputs
    assert items.dtype == seen.dtype == torch.int64
    return [2 * items, seen.float()]


def test_a_package_answers_by_name_with_the_threads_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        package = Package(doubled, top_k=3, threads=2)
        given = {"seen": np.ones((2, 1), np.int64), "items": np.arange(6, dtype=np.int32).reshape(2, 3)}
        given["items"].flags.writeable = False  # as a mapped file is
        (scores,) = package.run(["scores"], given)
        rows, _ = package.run(OUTPUTS, given)
        assert scores.dtype == np.float32 and rows.tolist() == [[0, 2, 4], [6, 8, 10]]
        assert torch.get_num_threads() == 2 and "AOTInductor" in package.runtime and package.per_call is None
    finally:
        torch.set_num_threads(before)


def test_nobody_gets_no_lists() -> None:
    rows, scores = Package(doubled, top_k=3, threads=1).run(
        OUTPUTS, {"items": np.zeros((0, 4), np.int64), "seen": np.zeros((0, 1), np.int64)}
    )
    assert (rows.shape, rows.dtype) == ((0, 3), np.int64) and (scores.shape, scores.dtype) == (
        (0, 3), np.float32,
    )  # fmt: skip


class Capture:
    """Captures nothing; answers with what it was replayed with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []

    def __call__(self, shape: tuple[int, int, int]) -> "Capture.Graph":
        self.shapes.append(shape)
        return Capture.Graph(shape)

    class Graph:
        def __init__(self, shape: tuple[int, int, int]) -> None:
            self.shape = shape

        def replay(self, items: np.ndarray, seen: np.ndarray) -> list[np.ndarray]:
            assert (*items.shape, seen.shape[1]) == self.shape and len(seen) == len(items)
            return [items, seen]


def call(graphs: Graphs, users: int, length: int, seen: int) -> list[np.ndarray]:
    rng = np.random.default_rng(users)
    items, banned = rng.integers(1, 9, (users, length)), rng.integers(1, 9, (users, seen))
    rows, masked = graphs.run(items, banned)
    np.testing.assert_array_equal(rows[:, -length:], items)  # padding stands in front
    np.testing.assert_array_equal(masked[:, :seen], banned)  # and behind what is masked
    assert not rows[:, :-length].any() and not masked[:, seen:].any() and len(rows) == len(masked) == users
    return [rows, masked]


def test_a_graph_is_captured_once_per_filled_up_shape() -> None:
    graphs = Graphs(capture := Capture(), [32, 1], longest=50)
    for users, length, seen in [(1, 3, 1), (1, 8, 1), (2, 9, 3), (32, 16, 4), (1, 5, 1), (7, 49, 1)]:
        call(graphs, users, length, seen)
    assert capture.shapes == [(1, 8, 1), (32, 16, 4), (32, 50, 1)]  # no further than the model reads


def test_larger_batches_are_not_served_and_empty_ones_neither() -> None:
    graphs = Graphs(Capture(), [1, 32], longest=50)
    assert [graphs.serve(users) for users in (0, 1, 2, 32, 33)] == [False, True, True, True, False]


def test_the_graph_that_was_not_used_longest_goes() -> None:
    graphs = Graphs(capture := Capture(), [1], longest=99, most=2)
    for length in (8, 16, 8, 24, 8, 16):
        call(graphs, 1, length, 1)
    assert [length for _, length, _ in capture.shapes] == [8, 16, 24, 16]


def test_a_capture_that_fails_is_tried_anew_and_keeps_the_others() -> None:
    capture, failing = Capture(), [True]

    def sometimes(shape: tuple[int, int, int]) -> Capture.Graph:
        if shape[1] == 16 and failing.pop():
            raise RuntimeError("out of memory")
        return capture(shape)

    graphs = Graphs(sometimes, [1], longest=99)
    call(graphs, 1, 8, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        call(graphs, 1, 16, 1)
    failing.append(False)
    call(graphs, 1, 16, 1), call(graphs, 1, 8, 1)
    assert [length for _, length, _ in capture.shapes] == [8, 16]


def test_on_a_gpu_small_batches_are_replayed_and_large_ones_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the CPU in the place of the GPU."""
    package = Package(doubled, top_k=3, threads=None, graphs=Graphs(Capture(), [2], longest=9), device="meta")
    package._device = "cpu:0"
    answer = package.run(OUTPUTS, {"items": np.ones((2, 3), np.int64), "seen": np.ones((2, 1), np.int64)})
    assert answer[0].shape == (2, 8)  # what the fake graph was replayed with
    answer = package.run(OUTPUTS, {"items": np.ones((3, 3), np.int64), "seen": np.ones((3, 1), np.int64)})
    assert answer[0].tolist() == [[2] * 3] * 3
