"""TensorRT itself: `pytest -m gpu tests/export/test_tensorrt_gpu.py` on a machine that has it and a GPU."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from export.engines import EngineOrder, engine_graph
from export.recorded import Recorded, recorded
from export.static import static_graph, table_weights
from export.tensorrt import Asked, Device, Engine, MissingError, build, open_device, open_engine, refit
from export.tensorrt_config import TensorrtConfig
from export.variants import ENGINE, VariantName
from recommender.scoring import HistoryArrays
from tests.export.bodies import canonical, scoring_graph, session
from tests.export.engines import fit
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, left_padded, tiny_model
from tests.export.test_quantized_body import quantized_model

pytestmark = pytest.mark.gpu
PROFILES = ((1, 1, 1), (1, 8, 16))
STEP = {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.1, "int8": 0.15, "fp8": 0.3}


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return open_device()
    except MissingError as error:
        pytest.skip(str(error))


def built(
    device: Device, folder: Path, name: VariantName, *, family: str = "llama", graph: ir.Model | None = None,
    matrices: Mapping[str, Recorded] | None = None, **config: Any,
) -> tuple[dict[str, Any], ir.Model]:  # fmt: skip
    """An engine in a folder, of a model or a graph; what its manifest says, and what it was built from."""
    asked = TensorrtConfig(profiles=PROFILES, seen=8, around="fp16", **config)
    histories = HistoryArrays(left_padded(200, MAX_LENGTH, seed=9))
    order = EngineOrder(asked, folder, histories=histories, matrices=matrices or {})
    graph = engine_graph(name, graph or canonical(family), order, length=MAX_LENGTH, n_items=N_ITEMS)
    ir.save(graph, folder / "graph.onnx")
    names = tuple(table_weights(graph, np.zeros((N_ITEMS + 1, 8), np.float32), N_ITEMS))
    options: Asked = asked.asked(folder / "cache", names if asked.refittable else ())
    facts = build(
        folder / "graph.onnx", folder / "a.plan", options, precision=ENGINE[name], check=fit, device=device
    )
    return facts | {"length": MAX_LENGTH, "seen": 8, "top_k": N_ITEMS}, graph


def given(users: int, seed: int = 0) -> dict[str, Any]:
    return {"items": left_padded(users, MAX_LENGTH, seed=seed), "seen": left_padded(users, 8, seed=seed + 1)}


def near(found: Any, wanted: Any, step: float) -> None:
    """Raise unless scores differ by less than `step` of the largest, and masks are the same."""
    real = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(found), real)
    assert np.abs(found[real] - wanted[real]).max() <= step * np.abs(wanted[real]).max()


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
            near(found, wanted, STEP[ENGINE[name]])


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


def test_an_int8_engine_computes_in_what_was_recorded(device: Device, tmp_path: Path) -> None:
    model, quantization = quantized_model("sasrec", "int8-static")
    whole, matrices = scoring_graph(model), recorded(model, quantization)
    told, _ = built(device, tmp_path, "tensorrt-int8", graph=whole, matrices=matrices)
    assert told["precision_proof"]["products"]["int8"] > 0
    engine = open_engine(tmp_path / "a.plan", {"engine": told}, None, "cuda")
    (wanted,) = session(static_graph(whole, length=MAX_LENGTH, seen=8)).run(["scores"], given(9))
    near(engine.run(("scores",), given(9))[0], wanted, STEP["int8"])


def test_a_sparse_engine_answers_and_tells_of_its_kernels(device: Device, tmp_path: Path) -> None:
    whole = scoring_graph(tiny_model("sasrec"))
    for node in whole.graph:
        weight = (
            node.inputs[1].const_value if node.op_type == "MatMul" and node.inputs[1] is not None else None
        )
        if weight is not None:
            array = weight.numpy().copy()  # [in, out]
            array[0::4], array[1::4] = 0, 0
            node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)  # type: ignore[union-attr]
    told, _ = built(device, tmp_path, "tensorrt-fp16", graph=whole, sparse=True)
    assert told["sparse_layers"] is not None  # how many depends on the GPU: dense kernels may be faster
    engine = open_engine(tmp_path / "a.plan", {"engine": told}, None, "cuda")
    (wanted,) = session(static_graph(whole, length=MAX_LENGTH, seen=8)).run(["scores"], given(9))
    near(engine.run(("scores",), given(9))[0], wanted, STEP["fp16"])


@pytest.mark.parametrize(
    "config",
    [
        {"version_compatible": True},
        {"hardware": "ampere-plus"},
        {"hardware": "same-compute-capability"},
        {"hardware": "ampere-plus", "version_compatible": True},
    ],
)
def test_a_portable_engine_answers_as_its_graph(
    device: Device, tmp_path: Path, config: dict[str, Any]
) -> None:
    if "ampere-plus" in config.values() and float(device.machine().capability) < 8:
        pytest.skip("older than Ampere")
    told, _ = built(device, tmp_path, "tensorrt-fp32", **config)
    engine = open_engine(tmp_path / "a.plan", {"engine": told}, None, "cuda")
    exact = session(static_graph(canonical("llama"), length=MAX_LENGTH, seen=8))
    near(engine.run(("scores",), given(9))[0], exact.run(["scores"], given(9))[0], STEP["fp32"])


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
