"""Native TensorRT engines in the GPU table: built once, used again where they fit, else built anew.

TensorRT is a stand-in (tests.fakes.tensorrt) whose engines run the graph in onnxruntime.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import export.onnx
import export.tensorrt
from export.onnx import export_onnx
from export.tensorrt_config import uncovered
from recommender.errors import InputError, StageError
from recommender.scoring import HistoryArrays, Scorer
from tests.bench.test_deploy_gpu import SCRIPTS
from tests.fakes import tensorrt
from tests.fakes.device import HERE, CpuDevice

SIZE = {"layers": 1, "hidden": 16, "heads": 2, "ffn": 24, "item_dim": 8, "length": 12}
MODEL = {"size": SIZE, "n_items": 60}
BATCHES = (1, 4)
Open = Callable[..., Scorer]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The canonical graph of the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        found = importlib.import_module("gpu_candidates")
    file = tmp_path_factory.mktemp("canonical") / "model.onnx"
    export_onnx(found.build(found.Size(**SIZE), 60), file, top_k=found.K)
    return file


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch, written: Path) -> ModuleType:
    """The ways; all engines are built from one export, which takes longest."""

    def copied(model: Any, path: Path, *, top_k: int) -> None:
        assert (model.n_items, top_k) == (60, 10)
        shutil.copyfile(written, path)

    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(export.onnx, "export_onnx", copied)
    return importlib.import_module("gpu_candidates")


@pytest.fixture
def fake_trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    tensorrt.reset()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(export.tensorrt, "open_device", CpuDevice)
    return tensorrt


@pytest.fixture
def opened(candidates: ModuleType, tmp_path: Path) -> Open:
    """Opens a way with the cache of this test."""

    def open_(way: str = "tensorrt-fp16", **more: Any) -> Scorer:
        given = {"device": "cuda", "threads": 1, "way": way, "batches": BATCHES, **MODEL, **more}
        scorer: Scorer = candidates.open_tensorrt(tmp_path, **given)
        return scorer

    return open_


def facts(cache: Path, way: str = "tensorrt-fp16") -> dict[str, Any]:
    (file,) = cache.glob(f"{way}-*/engine.json")
    told: dict[str, Any] = json.loads(file.read_text())
    return told


@pytest.mark.parametrize(("way", "off"), [("tensorrt-fp16", 0.02), ("tensorrt-bf16", 0.1)])
def test_an_engine_lists_what_the_model_lists_and_is_built_once(
    candidates: ModuleType, fake_trt: ModuleType, opened: Open, tmp_path: Path, way: str, off: float
) -> None:
    rows = np.random.default_rng(0).integers(1, 61, (4, 12))
    asked = HistoryArrays(rows, rows)
    exact = candidates.open_torch(tmp_path, device="cpu", threads=1, way="eager", **MODEL).top_k(asked, 60)
    scores = np.zeros((4, 61))
    np.put_along_axis(scores, exact.items, exact.scores, 1)
    first = opened(way).top_k(asked, 10)
    assert not any(np.isin(items, seen).any() for items, seen in zip(first.items, rows, strict=True))
    np.testing.assert_allclose(first.scores, np.take_along_axis(scores, first.items, 1), atol=off)
    told = facts(tmp_path, way)
    assert told["machine"] == HERE._asdict() and told["cuda_graphs"]
    assert told["precision_proof"]["products"][way.partition("-")[2]] > 0
    assert told["profiles"] == [[1, 1, 1], [2, 4, 4]] and told["seen"] == 64
    fake_trt.CALLS.clear()
    again = opened(way).top_k(asked, 10)
    assert "deserialize" in fake_trt.CALLS and "build" not in fake_trt.CALLS
    np.testing.assert_array_equal(again.items, first.items)


@pytest.mark.parametrize("tie", ["gpu", "tensorrt", "driver"])
def test_a_cached_engine_of_another_machine_is_built_again(
    fake_trt: ModuleType, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tie: str
) -> None:
    opened()
    there = HERE._replace(**{tie: "11.9"})
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: CpuDevice(there))
    fake_trt.CALLS.clear()
    opened()
    assert fake_trt.CALLS.count("build") == 1 and facts(tmp_path)["machine"] == there._asdict()


def test_an_engine_for_other_batches_is_built_again(
    fake_trt: ModuleType, opened: Open, tmp_path: Path
) -> None:
    opened()
    fake_trt.CALLS.clear()
    opened(batches=(1, 8))
    assert fake_trt.CALLS.count("build") == 1 and facts(tmp_path)["profiles"] == [[1, 1, 1], [2, 8, 8]]


def test_a_build_that_fails_says_so_and_leaves_the_engine_that_was_there(
    fake_trt: ModuleType, opened: Open, tmp_path: Path
) -> None:
    opened()
    before = facts(tmp_path)
    fake_trt.FAIL.add("build")
    with pytest.raises(StageError, match="failed at building the engine"):
        opened(batches=(1, 8))
    assert facts(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_without_tensorrt_or_a_gpu_the_reason_is_told(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"TensorRT cannot be imported"):
        opened()
    with pytest.raises(InputError, match=r"an engine needs a GPU, and the device is 'cpu'"):
        opened(device="cpu")
    assert not list(tmp_path.iterdir())


def test_profiles_are_tuned_for_the_batches_of_the_table_and_leave_no_gap(candidates: ModuleType) -> None:
    found = candidates.profiles(candidates.BATCHES)
    assert [tuned for _, tuned, _ in found] == list(candidates.BATCHES) and not uncovered(found)
    ref = candidates.reference_to("tensorrt-bf16", candidates.SIZES["student"], 9, batches=(1,), cache=Path())
    assert tuple(ref.options["batches"]) == candidates.BATCHES  # one engine for all waves of the table


def test_the_table_of_an_engine_counts_as_it_is_stored_and_its_product_as_float32(
    candidates: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = importlib.import_module("deploy_gpu")
    measuring = command.Measuring(
        None,
        {"student": candidates.Size(**SIZE)},
        "cuda",
        1,
        until=0.0,
        seconds=1.0,
        burst=1.0,
        cache=tmp_path,
    )
    engine, exact = (
        measuring._formulas("student", candidates.precisions(way, "cuda"))
        for way in ("tensorrt-bf16", "eager")
    )
    assert (engine.precision, engine.table_precision) == ("bf16", "fp32")
    assert engine.parts["scoring"].bytes["row"] == exact.parts["scoring"].bytes["row"] / 2
