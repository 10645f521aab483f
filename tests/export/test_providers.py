"""onnxruntime's CUDA and TensorRT providers: what they are asked for, and what is said where they miss.

No provider of a GPU runs here: sessions are recorded and opened on the CPU.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

from export import runtime
from export.runtime import Artifact, ArtifactError, main, open_session
from tests.export.fixtures import MAX_LENGTH, TOP_K, left_padded

RIGHT = onnxruntime.InferenceSession


class Sessions:
    """Opens everything on the CPU, as if the providers were there."""

    def __init__(self, *, loaded: bool = True) -> None:
        self.asked: list[list[tuple[str, dict[str, str]]]] = []
        self.loaded = loaded
        self.on_gpu = True  # all operators, as it is told

    def __call__(self, path: str, options: Any, providers: Any) -> Any:
        self.asked.append(providers)
        opened = RIGHT(path, options, providers=["CPUExecutionProvider"])
        if self.loaded:
            opened.get_providers = lambda: [name for name, _ in providers]  # type: ignore[method-assign]
        if self.on_gpu:
            opened.get_provider_graph_assignment_info = lambda: []  # type: ignore[method-assign]
        return opened


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    sessions = Sessions()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: runtime.PROVIDERS["tensorrt"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions)
    runtime._load_cuda.cache_clear()
    yield sessions
    runtime._load_cuda.cache_clear()


@pytest.mark.parametrize(
    ("device", "missing"),
    [
        (
            "cuda",
            "CUDAExecutionProvider; first pip uninstall onnxruntime, .* then pip install onnxruntime-gpu$",
        ),
        ("tensorrt", "Tensorrt.*first pip uninstall onnxruntime, .* install onnxruntime-gpu and tensorrt$"),
    ],
)
def test_a_missing_provider_is_named_with_what_brings_it(
    exported: Path, device: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match=missing):
        Artifact(exported, variant="fp32", device=device)
    assert main(["--artifact", str(exported), "--history", "x", "--device", device]) == 2


def test_cuda_computes_in_whole_float32(exported: Path, everything: Sessions) -> None:
    Artifact(exported, variant="fp32", device="cuda")
    (first, options), (second, _) = everything.asked[0]
    assert (first, second) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["use_tf32"] == "0" and options["enable_cuda_graph"] == "0"


def test_the_provider_tensorrt_has_one_engine_for_all_shapes_of_calls(
    exported: Path, everything: Sessions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECPRESS_CACHE", str(tmp_path))
    opened = Artifact(exported, variant="fp32", device="tensorrt")
    (first, options), (second, cuda), _ = everything.asked[0]
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider") and cuda[
        "use_tf32"
    ] == "0"
    assert options["trt_profile_min_shapes"] == "items:1x1,seen:1x1"
    assert options["trt_profile_max_shapes"] == f"items:256x{MAX_LENGTH},seen:256x4096"
    digest = opened.manifest["files"]["catalogue-1/fp32.onnx"]["sha256"]
    assert options["trt_engine_cache_path"] == str(tmp_path / "tensorrt-provider" / digest[:16])
    assert not {"trt_fp16_enable", "trt_int8_enable"} & set(options)  # types are the graph's
    asked: list[Any] = []
    session = opened.graph
    assert session is not None

    class Recording:
        def run(self, outputs: Any, given: Any) -> Any:
            asked.append(given["items"].shape)
            return session.run(outputs, given)

    opened.graph = Recording()
    many = runtime._History(left_padded(700, 1))
    opened.top_k(many, TOP_K)
    assert max(users for users, _ in asked) == 256
    opened.score(many, np.ones((700, 1), np.int64))
    assert everything.asked[-1][0][0] == "CUDAExecutionProvider"  # the body is no whole graph


def test_the_provider_tensorrt_is_for_whole_graphs(exported: Path, everything: Sessions) -> None:
    with pytest.raises(ArtifactError, match=r"is for whole ONNX graphs, and fast is none; open fp32"):
        Artifact(exported, variant="fast", device="tensorrt")


def test_a_provider_that_falls_back_without_a_word_is_found_out(exported: Path, everything: Sessions) -> None:
    everything.loaded = False
    with pytest.raises(ArtifactError, match=r"cannot load its CUDAExecutionProvider \(are CUDA, cuDNN"):
        open_session(exported / "catalogue-1/fp32.onnx", 1, "cuda")


def test_cuda_libraries_of_python_packages_are_loaded_once_before_the_first_session(
    exported: Path, everything: Sessions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[int] = []

    def preload_dlls() -> None:
        loads.append(len(everything.asked))
        print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    open_session(exported / "catalogue-1/fp32.onnx", 1, "cpu")
    assert loads == []
    for _ in range(2):
        open_session(exported / "catalogue-1/fp32.onnx", 1, "cuda")
    assert loads == [1] and len(everything.asked) == 3
    told = capsys.readouterr()
    assert told.out == "" and "libcudnn.so.9" in told.err  # stdout is for answers


def test_an_onnxruntime_that_cannot_load_them_is_asked_all_the_same(
    exported: Path, everything: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    open_session(exported / "catalogue-1/fp32.onnx", 1, "cuda")
    assert everything.asked[0][0][0] == "CUDAExecutionProvider"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_operators_that_are_on_the_cpu_beside_a_gpu_are_told_by_name(
    exported: Path, everything: Sessions, device: str
) -> None:
    """They all are, as there is no GPU; onnxruntime itself says so."""
    everything.on_gpu = False
    with pytest.warns(
        RuntimeWarning, match=r"fp32\.onnx: .* computes .*\d+ Gemm.*, 1 TopK.* on the CPU"
    ) as told:
        open_session(exported / "catalogue-1/fp32.onnx", 1, device)
    assert runtime.PROVIDERS[device][0] in str(told[0].message)
    assert not {"Shape", "Gather"} & set(str(told[0].message).replace(",", "").split())


def test_nothing_is_told_where_all_are_on_the_gpu_or_it_cannot_be_seen(
    exported: Path, everything: Sessions
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = open_session(exported / "catalogue-1/fp32.onnx", 1, "cuda")
        runtime._warn_of_cpu(Path("a.onnx"), object(), "CUDAExecutionProvider")  # type: ignore[arg-type]
        everything.on_gpu = False
        open_session(exported / "catalogue-1/fp32.onnx", 1, "cpu")  # where it is no fault
    assert session.get_providers()[0] == "CUDAExecutionProvider"


class Node(NamedTuple):
    op_type: str


class Part(NamedTuple):
    ep_name: str
    nodes: tuple[Node, ...]

    def get_nodes(self) -> tuple[Node, ...]:
        return self.nodes


def test_what_follows_from_shapes_may_be_on_the_cpu() -> None:
    on_gpu = Part("CUDAExecutionProvider", (Node("Gemm"), Node("TopK")))
    shapes = Part("CPUExecutionProvider", (Node("Shape"), Node("Gather"), Node("Concat")))
    assert runtime.computed_on_cpu([on_gpu, shapes]) == {}
    more = Part("CPUExecutionProvider", (Node("TopK"), Node("Attention"), Node("Attention")))
    assert runtime.computed_on_cpu([on_gpu, shapes, more]) == {"Attention": 2, "TopK": 1}
