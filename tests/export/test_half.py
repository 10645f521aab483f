"""fp16 and bf16: what is in half precision and what is not, how near scores are, and who may open them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from export.contract import ScoringExporterConfig, ScoringSizes
from export.half import TYPES, to_half
from export.half_check import rounded_in_float, runs_on_cpu
from export.lint import lint
from export.onnx import check_onnx, export_onnx
from export.runtime import ArtifactError
from export.variants import HalfKind
from recommender.errors import StageError
from tests.export.fixtures import (
    MAX_LENGTH,
    N_ITEMS,
    TOP_K,
    left_padded,
    tiny_model,
)

KINDS: tuple[HalfKind, ...] = ("fp16", "bf16")
STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # half of the distance between neighbouring numbers around 1
ONNX_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FAMILIES = ("llama", "gemma", "gpt2", "sasrec-post")
NORMS = ("RMSNormalization", "LayerNormalization")
Canonical = Callable[[str], Path]


@pytest.fixture(scope="module")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Canonical:
    """The canonical graph of a model, exported once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("canonical") / "fp32.onnx"
            export_onnx(tiny_model(name), made[name], top_k=TOP_K)
        return made[name]

    return get


def answers(graph: onnx.ModelProto | Path, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(top_items, scores) from onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    given = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    rows, scores = session.run(("top_items", "scores"), inputs(items))
    return rows, scores


def inputs(items: np.ndarray) -> dict[str, np.ndarray]:
    return {"items": items, "seen": items}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {entry.name: entry.data_type for entry in inferred.initializer}
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return found | {value.name: value.type.tensor_type.elem_type for value in values}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of scores per unit of the largest score."""
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FAMILIES, "popularity", "item-vectors"])
def test_the_contract_is_that_of_the_canonical_graph(
    canonical: Canonical, tmp_path: Path, name: str, kind: HalfKind
) -> None:
    ir.save(to_half(ir.load(canonical(name)), kind), tmp_path / "half.onnx")
    check_onnx(tmp_path / "half.onnx", ScoringExporterConfig(ScoringSizes(N_ITEMS, MAX_LENGTH, TOP_K)))
    found = lint(tmp_path / "half.onnx", precision=kind, profiled=["batch", "length", "seen"])
    wrong = {each.rule for each in found if each.severity == "error"}
    assert wrong == (
        {"attention-attribute"} if name in FAMILIES else set()
    )  # softmax_precision: not for TensorRT
    assert "precision-cast" not in {each.rule for each in found}
    half, whole = onnx.load(tmp_path / "half.onnx").graph, onnx.load(canonical(name)).graph
    for one, other in zip([*half.input, *half.output], [*whole.input, *whole.output], strict=True):
        assert (one.name, one.type) == (other.name, other.type)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_products_are_in_half_precision_and_norms_softmax_and_scores_are_not(
    canonical: Canonical, name: str, kind: HalfKind
) -> None:
    model = ir.to_proto(to_half(ir.load(canonical(name)), kind))
    types, half = types_of(model), ONNX_TYPES[kind]
    *_, table = [node.input[1] for node in model.graph.node if node.op_type == "Gemm"]
    seen = set()
    for node in model.graph.node:
        kinds = {types[entry] for entry in [*node.input, *node.output] if entry}
        if node.op_type in (*NORMS, "TopK", "ScatterElements", "Cos", "Sin", "Pow", "Range"):
            assert half not in kinds, node.op_type
        elif node.op_type == "Gemm" and node.input[1] == table:
            assert kinds == {TensorProto.FLOAT}
        elif node.op_type in ("MatMul", "Gemm", "RotaryEmbedding"):
            assert kinds == {half}, node.op_type
        elif node.op_type == "Attention":
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            assert attributes["softmax_precision"] == TensorProto.FLOAT
            assert [types[entry] for entry in node.input[:3]] == [half] * 3
            assert types[node.input[3]] in (half, TensorProto.BOOL)
        seen.add(node.op_type)
    assert seen & set(NORMS) and {"Attention", "TopK"} <= seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_about_half_as_large(tmp_path: Path, kind: HalfKind) -> None:
    export_onnx(tiny_model("llama", n_items=30_000), tmp_path / "fp32.onnx", top_k=5)
    model = ir.load(tmp_path / "fp32.onnx")
    ir.save(to_half(model, kind), tmp_path / "half.onnx")
    share = (tmp_path / "half.onnx").stat().st_size / (tmp_path / "fp32.onnx").stat().st_size
    assert 0.49 < share < 0.53
    ir.save(model, tmp_path / "again.onnx")  # the one that it was made from is left as it was
    assert (tmp_path / "again.onnx").stat().st_size == (tmp_path / "fp32.onnx").stat().st_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_near_and_the_twin_is_as_the_reference_evaluator_of_onnx(
    canonical: Canonical, name: str, kind: HalfKind
) -> None:
    items = left_padded(8, MAX_LENGTH)
    half = to_half(ir.load(canonical(name)), kind)
    _, exact = answers(canonical(name), items)
    _, twin = answers(ir.to_proto(rounded_in_float(half, kind)), items)
    _, reference = ReferenceEvaluator(ir.to_proto(half)).run(("top_items", "scores"), inputs(items))
    assert reference.dtype == twin.dtype == np.float32
    assert STEP[kind] / 50 < distance(twin, exact) < 6 * STEP[kind]
    assert distance(twin, reference) < 4 * STEP[kind]


@pytest.mark.parametrize("name", FAMILIES)
def test_onnxruntime_runs_fp16_on_a_cpu_and_not_bf16(canonical: Canonical, tmp_path: Path, name: str) -> None:
    for kind in KINDS:
        ir.save(to_half(ir.load(canonical(name)), kind), tmp_path / f"{kind}.onnx")
    assert runs_on_cpu(tmp_path / "fp16.onnx") and not runs_on_cpu(tmp_path / "bf16.onnx")
    items = left_padded(8, MAX_LENGTH)
    exact, found = answers(canonical(name), items), answers(tmp_path / "fp16.onnx", items)
    assert distance(found[1], exact[1]) < 6 * STEP["fp16"]
    with pytest.raises(ArtifactError, match="cannot open"):
        (tmp_path / "broken.onnx").write_bytes(b"no graph")
        runs_on_cpu(tmp_path / "broken.onnx")


@pytest.mark.parametrize("name", ["llama", "sasrec", "gpt2"])
def test_padding_and_an_empty_history_give_no_nan(canonical: Canonical, name: str) -> None:
    items = left_padded(8, MAX_LENGTH)
    items[3] = 0
    for kind in KINDS:
        half = to_half(ir.load(canonical(name)), kind)
        assert np.isfinite(answers(ir.to_proto(rounded_in_float(half, kind)), items)[1]).all()
    assert np.isfinite(answers(ir.to_proto(to_half(ir.load(canonical(name)), "fp16")), items)[1]).all()


def test_the_twin_holds_only_numbers_that_the_type_holds(canonical: Canonical) -> None:
    half = to_half(ir.load(canonical("llama")), "bf16")
    twin = rounded_in_float(half, "bf16")
    names = [value.name for value in half.graph.initializers.values() if value.dtype == TYPES["bf16"]]
    assert len(names) > 10
    for name in names:
        value = twin.graph.initializers[name].const_value
        assert value is not None and value.dtype == ir.DataType.FLOAT
        array = value.numpy()
        np.testing.assert_array_equal(array, array.astype(TYPES["bf16"].numpy()).astype(np.float32))
    rounding = [node for node in twin.graph if node.attributes.get_int("to", 0) == int(TYPES["bf16"])]
    stored = {"MatMul", "Add", "Mul", "Sigmoid", "Attention", "RotaryEmbedding"}
    assert len(rounding) >= sum(node.op_type in stored for node in half.graph if node.outputs[0].dtype != 1)


def with_table(path: Path, factor: float) -> ir.Model:
    """The graph with its item table multiplied."""
    model = ir.load(path)
    table = model.graph.initializers["model.items.weight"]
    assert table.const_value is not None
    table.const_value = ir.tensor((table.const_value.numpy() * factor).astype(np.float32), name=table.name)
    return model


def test_weights_beyond_the_range_of_fp16_are_refused_and_fit_bf16(canonical: Canonical) -> None:
    large = with_table(canonical("llama"), 1e7)
    with pytest.raises(StageError, match=r"items\.weight holds .*beyond the range of fp16") as caught:
        to_half(large, "fp16")
    assert "try bf16" in str(caught.value)
    to_half(large, "bf16")


def test_vendor_operators_and_graphs_within_graphs_are_refused(canonical: Canonical) -> None:
    model = ir.load(canonical("llama"))
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    node.domain = "com.microsoft"
    with pytest.raises(StageError, match=r"com\.microsoft\.Sigmoid is a vendor's operator"):
        to_half(model, "fp16")
    node.domain = ""
    inner = ir.node("Identity", [node.outputs[0]])
    node.attributes["body"] = ir.AttrGraph("body", ir.Graph([], [], nodes=[inner]))
    with pytest.raises(StageError, match=r"Identity .*stands in a graph within the graph"):
        to_half(model, "fp16")
