"""Recorded schemes in graphs: exactly the recorded numbers, every matrix, and what a variant cannot hold."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from compress.quantization.rounding import rounded
from compress.quantization.simulation import activations
from export.body import cut_body
from export.fast_body import fast_body
from export.four_bits import pack
from export.quantized_body import per_block, quantized_body
from export.recorded import Recorded, left_in_float, products, recorded
from recommender.errors import StageError
from recommender.models.interface import History, SequentialRecommender
from recommender.models.linears import body_linears, quantizable
from recommender.quantization_scheme import MatrixScheme, Quantization, QuantizationScheme
from tests.export.bodies import scoring_graph, session, shapes, user_vectors
from tests.export.fixtures import MAX_LENGTH, MODELS, tiny_model

FAMILIES = [name for name in MODELS if name not in ("popularity", "item-vectors")]
SCHEMES = {
    "int4": MatrixScheme(weights="int4"),
    "int4-16": MatrixScheme(weights="int4", group=16),
    "int4-32": MatrixScheme(weights="int4", group=32),
    "int8": MatrixScheme(weights="int8"),
    "int8-dynamic": MatrixScheme(weights="int8", activations="dynamic", narrow=True),
    "int8-static": MatrixScheme(weights="int8", activations="static", input_range=(-4.0, 4.0)),
    "int8-clipped": MatrixScheme(weights="int8", activations="static", input_range=(-0.05, 0.05)),
}


OFTEN = ("llama", "phi3", "gpt2", "gpt_neox", "sasrec")
"""Families whose graphs differ most in how matrices stand in them; the others are for the slow suite."""


def _marks(family: str) -> list[pytest.MarkDecorator]:
    return [] if family in OFTEN else [pytest.mark.slow]


def quantized_model(
    family: str, scheme: str = "int4", only: str = "", projections: bool = False
) -> tuple[SequentialRecommender, Quantization]:
    """A tiny model on the grid of a scheme (the matrices whose names hold `only`)."""
    model = tiny_model(family)
    torch.manual_seed(1)
    scales, matrices = {}, {}
    every = quantizable(model) if projections else body_linears(model.bodies()["user"])
    for name, linear in every.items():
        if only not in name:
            continue
        with torch.no_grad():
            linear.matrix().add_(0.05 * torch.randn(linear.matrix().shape))  # fresh biases are alike
            found = rounded(linear.matrix(), SCHEMES[scheme])
            linear.matrix().copy_(found.values)
        assert found.scales is not None
        scales[name], matrices[name] = found.scales.numpy(), SCHEMES[scheme]
    return model, Quantization(QuantizationScheme(matrices=matrices), scales)


@cache
def made(family: str, scheme: str) -> tuple[ir.Model, dict[str, Recorded], np.ndarray]:
    """(body, recorded matrices, item table); shared, so tests must not change them."""
    model, quantization = quantized_model(family, scheme)
    body = cut_body(scoring_graph(model))
    return body, recorded(model, quantization), model.item_table().detach().numpy()


def differences(one: ir.Model, other: ir.Model, table: np.ndarray, alone: bool = False) -> float:
    first, second = session(one), session(other)
    worst = 0.0
    for items in shapes():
        for part in np.split(items, len(items)) if alone else [items]:
            gap = user_vectors(first, part, table) - user_vectors(second, part, table)
            worst = max(worst, float(np.abs(gap).max()))
    return worst


@pytest.mark.parametrize(
    ("variant", "family", "scheme"),
    [
        *(pytest.param("quantized", family, "int4-16", marks=_marks(family)) for family in FAMILIES),
        *(("quantized", "sasrec", scheme) for scheme in ("int4", "int8")),
        *(("qdq", "sasrec", scheme) for scheme in ("int4", "int4-16", "int8")),
        *(("qdq", family, "int4-16") for family in ("llama", "gpt2", "gpt_neox")),
    ],
)
def test_weights_alone_in_few_bits_answer_as_the_values_on_the_grid_do(
    variant: str, family: str, scheme: str
) -> None:
    body, matrices, table = made(family, scheme)
    source = fast_body(body, max_length=MAX_LENGTH).model if variant == "quantized" else body
    assert differences(body, quantized_body(source, matrices, variant), table) < 2e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "sasrec"])
def test_dynamic_inputs_in_8_bits_stay_near(family: str) -> None:
    body, matrices, table = made(family, "int8-dynamic")
    apart = differences(body, quantized_body(body, matrices, "quantized"), table, alone=True)
    size = np.abs(user_vectors(session(body), shapes()[-2], table)).max()
    assert 0 < apart < 0.1 * size


@pytest.mark.parametrize("family", ["llama", "sasrec"])
def test_static_inputs_in_8_bits_are_those_that_torch_simulates(family: str) -> None:
    model, quantization = quantized_model(family, "int8-static")
    body, matrices, table = made(family, "int8-static")
    graph = session(quantized_body(body, matrices, "qdq"))
    items = shapes()[-2]
    with torch.inference_mode():
        plain = model.user_vector(History(torch.from_numpy(items))).numpy()
        with activations(body_linears(model.bodies()["user"]), quantization.scheme.matrices):
            simulated = model.user_vector(History(torch.from_numpy(items))).numpy()
    found = user_vectors(graph, items, table)
    assert np.abs(simulated - plain).max() > 0.02
    assert np.abs(found - simulated).max() < 0.1 * np.abs(simulated - plain).max()


def test_the_stored_numbers_and_scales_are_those_of_the_checkpoint() -> None:
    body, matrices, _ = made("llama", "int8-dynamic")
    proto = ir.to_proto(quantized_body(body, matrices, "quantized"))
    stored = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    integers = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    found = {stored[node.input[1]].T.tobytes() for node in integers}
    assert found == {np.ascontiguousarray(each.numbers).tobytes() for each in matrices.values()}
    assert max(abs(each.numbers).max() for each in matrices.values()) == 63  # 7 bits
    scales = {stored[name].tobytes() for node in proto.graph.node for name in node.input if name in stored}
    assert all(each.scales[:, 0].tobytes() in scales for each in matrices.values())


def test_queries_keys_and_values_share_one_quantized_input() -> None:
    body, matrices, _ = made("llama", "int8-dynamic")
    nodes = [node.op_type for node in quantized_body(body, matrices, "quantized").graph]
    assert nodes.count("MatMulInteger") == 14
    assert nodes.count("DynamicQuantizeLinear") <= 2 * 4 + 1  # attention, o, mlp, down; the last query alone


@pytest.mark.parametrize(
    ("variant", "scheme", "operator"),
    [
        ("quantized", "int4-32", "MatMulNBits"),
        ("quantized", "int8-dynamic", "MatMulInteger"),
        ("qdq", "int4", "DequantizeLinear"),
        ("qdq", "int8-static", "QuantizeLinear"),
    ],
)
def test_no_product_with_a_matrix_of_the_scheme_is_left_and_each_carries_its_name(
    variant: str, scheme: str, operator: str
) -> None:
    body, matrices, _ = made("llama", scheme)
    graph = quantized_body(body, matrices, variant).graph
    assert not products(ir.Model(graph, ir_version=10), matrices)
    assert {str(node.name).split("/")[0] for node in graph if "/" in str(node.name)} >= set(matrices)
    assert any(node.op_type == operator for node in graph)
    assert len(products(body, matrices)) == len(matrices) == 14  # the given body is as it was


def test_the_form_for_other_runtimes_is_standard_valid_and_symmetric() -> None:
    body, matrices, _ = made("sasrec", "int8-static")
    proto = ir.to_proto(quantized_body(body, matrices, "qdq"))
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    stored = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    quantizing = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizing
    for node in quantizing:
        assert stored[node.input[2]].dtype == np.int8 and stored[node.input[2]] == 0
        assert stored[node.input[1]] == np.float32(4.0 / 127)
    made_by = {name: node for node in proto.graph.node for name in node.output}
    weighted = [node for node in proto.graph.node if node.op_type == "MatMul"]
    both = [{made_by[name].op_type for name in node.input if name in made_by} for node in weighted]
    assert sum(each == {"DequantizeLinear"} for each in both) >= len(matrices)


def test_matrices_that_the_scheme_leaves_out_stay_in_float() -> None:
    model, quantization = quantized_model("llama", "int4", only="mlp")
    body = cut_body(scoring_graph(model))
    matrices = recorded(model, quantization)
    nodes = [node.op_type for node in quantized_body(body, matrices, "quantized").graph]
    assert nodes.count("MatMulNBits") == 6 and nodes.count("MatMul") == 8 + 1  # and the input projection


def test_a_matrix_that_is_not_in_the_graph_is_named() -> None:
    body, matrices, _ = made("llama", "int4")
    model, quantization = quantized_model("llama", "int4")
    other = recorded(*_shifted(model, quantization, "1.mlp.up_proj"))
    with pytest.raises(StageError, match=r"1 of 14 matrices .* not in the graph: 1\.mlp\.up_proj"):
        quantized_body(body, {**matrices, "1.mlp.up_proj": other["1.mlp.up_proj"]}, "quantized")


def _shifted(
    model: SequentialRecommender, quantization: Quantization, name: str
) -> tuple[SequentialRecommender, Quantization]:
    """The same with one matrix turned upside down."""
    linear = body_linears(model.bodies()["user"])[name]
    with torch.no_grad():
        linear.matrix().neg_().clamp_(-7 * float(quantization.scales[name].min()))
    scales = torch.full_like(torch.from_numpy(quantization.scales[name]), 1e-3)
    with torch.no_grad():
        linear.matrix().copy_((linear.matrix() / 1e-3).round().clamp(-8, 7) * 1e-3)
    return model, Quantization(quantization.scheme, {**quantization.scales, name: scales.numpy()})


@pytest.mark.parametrize(("variant", "scheme"), [("quantized", "int8-static"), ("qdq", "int8-dynamic")])
def test_a_kind_that_the_variant_cannot_hold_is_refused(variant: str, scheme: str) -> None:
    body, matrices, _ = made("llama", scheme)
    with pytest.raises(StageError, match=f"{variant} cannot hold .* in {scheme}"):
        quantized_body(body, matrices, variant)


def test_a_scheme_without_matrices_is_refused() -> None:
    body, _, _ = made("llama", "int4")
    with pytest.raises(StageError, match="quantizes no matrix"):
        quantized_body(body, {}, "quantized")


def test_weights_that_left_their_grid_are_refused() -> None:
    model, quantization = quantized_model("llama")
    with torch.no_grad():
        body_linears(model.bodies()["user"])["0.mlp.down_proj"].matrix()[3, 5] += 1e-4
    with pytest.raises(StageError, match=r"0\.mlp\.down_proj does not lie on the grid"):
        recorded(model, quantization)


@pytest.mark.parametrize(("bits", "block", "width"), [(4, 16, 40), (4, 32, 32), (8, 16, 40)])
def test_packing_can_be_undone(bits: int, block: int, width: int) -> None:
    half = 1 << (bits - 1)
    numbers = np.random.default_rng(0).integers(-half, half, (3, width)).astype(np.int8)
    packed = pack(numbers, bits, block)
    assert packed.dtype == np.uint8 and packed.shape == (3, -(-width // block), block * bits // 8)
    if bits == 4:
        packed = np.stack((packed & 15, packed >> 4), axis=-1)
    assert np.array_equal(packed.reshape(3, -1)[:, :width].astype(int) - half, numbers)


def test_the_scale_of_a_row_stands_for_all_its_blocks() -> None:
    rows: Any = np.array([[1.0], [2.0]], np.float32)
    assert per_block(rows, 40, 16).tolist() == [[1.0] * 3, [2.0] * 3]
    grouped = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(per_block(grouped, 40, 16), grouped)


@pytest.mark.parametrize(
    ("variant", "family", "scheme"),
    [
        *(("quantized", family, "int4-16") for family in ("llama", "gpt2")),
        ("quantized", "llama", "int8"),
        ("qdq", "llama", "int4"),
        ("qdq", "gpt_neox", "int8"),
    ],
)
def test_projections_in_few_bits_leave_no_float_product(
    variant: str, family: str, scheme: str, tmp_path: Path
) -> None:
    model, quantization = quantized_model(family, scheme, projections=True)
    body, table = cut_body(scoring_graph(model)), model.item_table().detach().numpy()
    matrices = recorded(model, quantization)
    source = fast_body(body, max_length=MAX_LENGTH).model if variant == "quantized" else body
    found = quantized_body(source, matrices, variant)
    assert differences(body, found, table) < 2e-5
    ir.save(found, tmp_path / "found.onnx")
    assert left_in_float(tmp_path / "found.onnx", model) == {}


def test_projections_with_dynamic_inputs_stay_near() -> None:
    model, quantization = quantized_model("llama", "int8-dynamic", projections=True)
    body, table = cut_body(scoring_graph(model)), model.item_table().detach().numpy()
    found = quantized_body(body, recorded(model, quantization), "quantized")
    size = np.abs(user_vectors(session(body), shapes()[-2], table)).max()
    assert 0 < differences(body, found, table, alone=True) < 0.1 * size
    assert sum(node.op_type == "MatMulInteger" for node in found.graph) == 14 + 2


def test_a_projection_that_is_not_in_the_graph_is_told() -> None:
    model, quantization = quantized_model("llama", "int4", projections=True)
    body = cut_body(scoring_graph(tiny_model("llama")))  # other weights
    matrices = recorded(model, quantization)
    lost = {name: matrices[name] for name in ("output_projection",)}
    with pytest.raises(
        StageError, match="1 of 1 matrices of the scheme are not in the graph: output_projection"
    ):
        quantized_body(body, lost, "quantized")


@pytest.mark.parametrize("variant", ["quantized", "qdq"])
def test_weights_that_stay_in_float_are_named_and_counted(variant: str, tmp_path: Path) -> None:
    model, quantization = quantized_model("llama", "int4", only="mlp")
    body = cut_body(scoring_graph(model))
    source = fast_body(body, max_length=MAX_LENGTH).model if variant == "quantized" else body
    ir.save(quantized_body(source, recorded(model, quantization), variant), tmp_path / "found.onnx")
    linears = quantizable(model)
    assert left_in_float(tmp_path / "found.onnx", model) == {
        name: linear.matrix().numel() for name, linear in linears.items() if "mlp" not in name
    }
