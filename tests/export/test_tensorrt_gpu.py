"""TensorRT itself: `pytest -m gpu tests/export/test_tensorrt_gpu.py` on a machine that has it and a GPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from export.engines import EngineOrder, engine_graph
from export.static import static_graph, table_weights
from export.tensorrt import Asked, Device, Engine, MissingError, build, open_device, open_engine, refit
from export.tensorrt_config import TensorrtConfig
from export.variants import ENGINE, VariantName
from recommender.scoring import HistoryArrays
from tests.export.bodies import canonical, session
from tests.export.engines import fit
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, left_padded

pytestmark = pytest.mark.gpu
PROFILES = ((1, 1, 1), (1, 8, 16))
STEP = {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.1, "fp8": 0.3}


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return open_device()
    except MissingError as error:
        pytest.skip(str(error))


def built(
    device: Device, folder: Path, name: VariantName, *, family: str = "llama", **config: Any
) -> tuple[dict[str, Any], ir.Model]:
    """An engine in a folder; what its manifest says, and its graph."""
    asked = TensorrtConfig(profiles=PROFILES, seen=8, around="fp16", **config)
    order = EngineOrder(asked, folder, histories=HistoryArrays(left_padded(200, MAX_LENGTH, seed=9)))
    graph = engine_graph(name, canonical(family), order, length=MAX_LENGTH, n_items=N_ITEMS)
    ir.save(graph, folder / "graph.onnx")
    names = tuple(table_weights(graph, np.zeros((N_ITEMS + 1, 8), np.float32), N_ITEMS))
    options: Asked = asked.asked(folder / "cache", names if asked.refittable else ())
    facts = build(
        folder / "graph.onnx", folder / "a.plan", options, precision=ENGINE[name], check=fit, device=device
    )
    return facts | {"length": MAX_LENGTH, "seen": 8, "top_k": N_ITEMS}, graph


def given(users: int, seed: int = 0) -> dict[str, Any]:
    return {"items": left_padded(users, MAX_LENGTH, seed=seed), "seen": left_padded(users, 8, seed=seed + 1)}


@pytest.mark.parametrize("family", ["llama", "sasrec"])
@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-fp8"])
def test_an_engine_answers_as_its_graph(
    device: Device, tmp_path: Path, name: VariantName, family: str
) -> None:
    if name == "tensorrt-fp8" and float(device.machine().capability) < 8.9:
        pytest.skip("no 8-bit floats on this GPU")
    told, _ = built(device, tmp_path, name, family=family)
    engine = open_engine(tmp_path / "a.plan", {"engine": told}, None, "cuda")
    exact = session(static_graph(canonical(family), length=MAX_LENGTH, seen=8))
    for users in (1, 3, 16, 40):
        for seed in range(3):
            asked = given(users, seed)
            (found,), (wanted,) = engine.run(("scores",), asked), exact.run(["scores"], asked)
            real = np.isfinite(wanted)
            np.testing.assert_array_equal(np.isfinite(found), real)
            limit = STEP[ENGINE[name]] * np.abs(wanted[real]).max()
            assert np.abs(found - wanted)[real].max() <= limit


def test_a_captured_call_answers_as_one_that_is_not(device: Device, tmp_path: Path) -> None:
    told, _ = built(device, tmp_path, "tensorrt-fp16")
    content = (tmp_path / "a.plan").read_bytes()
    with_graphs, without = (
        Engine(content, told | {"cuda_graphs": on}, device).run(("scores",), given(5))[0]
        for on in (True, False)
    )
    np.testing.assert_array_equal(with_graphs, without)


def test_threads_share_an_engine(device: Device, tmp_path: Path) -> None:
    told, _ = built(device, tmp_path, "tensorrt-fp32")
    engine = Engine((tmp_path / "a.plan").read_bytes(), told, device)
    alone = [engine.run(("scores",), given(1 + seed % 5, seed))[0] for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda seed: engine.run(("scores",), given(1 + seed % 5, seed))[0], range(20))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_build_finds_its_timings(device: Device, tmp_path: Path) -> None:
    built(device, tmp_path, "tensorrt-fp16")
    told, _ = built(device, tmp_path, "tensorrt-fp16")
    assert told["timing_cache"]["hit"]


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16"])
def test_a_refit_puts_a_new_item_in(device: Device, tmp_path: Path, name: VariantName) -> None:
    told, graph = built(device, tmp_path, name, refittable=True, spare_items=4)
    before = Engine((tmp_path / "a.plan").read_bytes(), told, device).run(("top_items",), given(9))[0]
    assert before.max() <= N_ITEMS
    table = np.random.default_rng(0).normal(size=(N_ITEMS + 2, 8)).astype(np.float32)
    new = table_weights(graph, table, N_ITEMS + 1)
    refit(tmp_path / "a.plan", tmp_path / "b.plan", new, told=told, device=device)
    after = Engine((tmp_path / "b.plan").read_bytes(), told, device).run(("top_items",), given(9))[0]
    assert (after == N_ITEMS + 1).any()
