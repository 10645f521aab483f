"""onnxruntime's CUDA and TensorRT providers: what they are asked for, and what is said where they miss.

No provider of a GPU runs here: sessions are recorded and opened on the CPU.
"""

from pathlib import Path
from typing import Any

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

    def __call__(self, path: str, options: Any, providers: Any) -> Any:
        self.asked.append(providers)
        opened = RIGHT(path, options, providers=["CPUExecutionProvider"])
        if self.loaded:
            opened.get_providers = lambda: [name for name, _ in providers]  # type: ignore[method-assign]
        return opened


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    sessions = Sessions()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: runtime.PROVIDERS["tensorrt"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions)
    return sessions


@pytest.mark.parametrize(
    ("device", "missing"),
    [("cuda", "CUDAExecutionProvider; pip install onnxruntime-gpu"), ("tensorrt", "Tensorrt.* and tensorrt")],
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
