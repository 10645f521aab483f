"""Graphs of 8-bit engines: what is quantized, by which ranges, and what is around. TensorRT is a stand-in."""

import dataclasses
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import export.engines
import export.tensorrt
from export.engines import EngineOrder, engine_graph
from export.fp8 import fp8_products
from export.recorded import Recorded, recorded
from export.static import static_graph
from export.tensorrt_config import TensorrtConfig
from export.variants import ENGINE, VariantName
from recommender.errors import StageError
from recommender.scoring import HistoryArrays
from tests.export.bodies import canonical, scoring_graph, session
from tests.export.engines import built
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, left_padded
from tests.export.test_quantized_body import quantized_model
from tests.fakes.device import CpuDevice


def order(**values: Any) -> EngineOrder:
    return EngineOrder(TensorrtConfig(profiles=((1, 4, 8),), seen=8), Path(), **values)


def proved(name: VariantName, graph: ir.Model, folder: Path) -> dict[str, Any]:
    """What an engine of a graph is proved to compute in; all of it in plain operators."""
    assert not {"Attention", "RMSNormalization", "RotaryEmbedding"} & {node.op_type for node in graph.graph}
    ir.save(graph, folder / "graph.onnx")
    told = built(folder / "graph.onnx", folder / "graph.plan", ENGINE[name], profiles=((1, 4, 8),))
    return told["precision_proof"]


def answers(folder: Path, told: dict[str, Any]) -> Any:
    engine = export.tensorrt.Engine((folder / "graph.plan").read_bytes(), told, CpuDevice())
    given = {"items": left_padded(20, MAX_LENGTH), "seen": np.zeros((20, 1), np.int64)}
    return engine.run(("scores",), given)[0]


def exact(whole: ir.Model) -> Any:
    """The scores of all items in float32."""
    given = {"items": left_padded(20, MAX_LENGTH), "seen": np.zeros((20, 1), np.int64)}
    return session(whole).run(["scores"], given)[0]


@cache
def int8() -> tuple[ir.Model, dict[str, Recorded]]:
    model, quantization = quantized_model("sasrec", "int8-static")
    return scoring_graph(model), recorded(model, quantization)


TOLD = {
    "length": MAX_LENGTH, "seen": 8, "top_k": N_ITEMS, "profiles": [[1, 4, 8]],
    "flags": {"version_compatible": False},
}  # fmt: skip


@pytest.mark.parametrize("around", ["fp32", "fp16", "bf16"])
def test_int8_is_the_recorded_scheme_in_one_graph(fake_trt: ModuleType, tmp_path: Path, around: str) -> None:
    whole, matrices = int8()
    asked = order(matrices=matrices)
    asked = dataclasses.replace(asked, config=asked.config.model_copy(update={"around": around}))
    graph = engine_graph("tensorrt-int8", whole, asked, length=MAX_LENGTH, n_items=N_ITEMS)
    kinds = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
    for node in (each for each in graph.graph if each.op_type == "DequantizeLinear"):
        assert node.outputs[0].dtype == kinds[around]
        readers = {use.node.op_type for use in node.outputs[0].uses()}
        assert readers == {"MatMul"}  # no Cast between, which would keep TensorRT from fusing
    proof = proved("tensorrt-int8", graph, tmp_path)
    assert proof["products"]["int8"] >= len(matrices)
    right = exact(whole)
    assert 0 < np.abs(answers(tmp_path, TOLD) - right).max() < 0.1 * np.abs(right).max()


@pytest.mark.parametrize("around", ["fp32", "fp16"])
@pytest.mark.parametrize("family", ["sasrec", pytest.param("llama", marks=pytest.mark.slow)])
def test_fp8_holds_ranges_of_training_histories(
    fake_trt: ModuleType, tmp_path: Path, family: str, around: str
) -> None:
    asked = order(histories=HistoryArrays(left_padded(50, 9, seed=5)))
    asked = dataclasses.replace(asked, config=asked.config.model_copy(update={"around": around}))
    whole = canonical(family)
    graph = engine_graph("tensorrt-fp8", whole, asked, length=MAX_LENGTH, n_items=N_ITEMS)
    stored = [each for each in graph.graph.initializers.values() if each.dtype == ir.DataType.FLOAT8E4M3FN]
    assert all(np.abs(each.const_value.numpy().astype(np.float32)).max() <= 448 for each in stored)  # type: ignore[union-attr]
    assert len(stored) > 8
    assert proved("tensorrt-fp8", graph, tmp_path)["share"] >= 0.5
    right = exact(whole)
    assert 0 < np.abs(answers(tmp_path, TOLD) - right).max() < 0.15 * np.abs(right).max()


def test_fp8_without_a_matrix_is_refused() -> None:
    popular = static_graph(canonical("popularity"), length=MAX_LENGTH, seen=8)
    with pytest.raises(StageError, match="no product of this graph has a matrix of weights"):
        fp8_products(popular, {})
