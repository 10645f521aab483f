"""Each rule has a model that breaks it and only it; what is right passes."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T

from export.lint import Finding, lint
from export.lint.rules import RULES
from tests.export.lint.violations import (
    NEWEST,
    RELU,
    VIOLATIONS,
    attention,
    cast_up,
    clean,
    model,
    node,
    outside_data,
    quantized,
    top_k,
    value,
    weight,
    with_weight,
)

WARNINGS = {
    "parser-version", "operator-type", "gather-nd", "is-nan", "precision-cast", "quantized-product",
    "half-denormal",
}  # fmt: skip
DOCS = Path(__file__).parents[3] / "docs" / "lint.md"


def lint_of(made: onnx.ModelProto, folder: Path, **asked: object) -> tuple[Finding, ...]:
    onnx.save(made, folder / "tiny.onnx")
    return lint(folder / "tiny.onnx", **asked)  # type: ignore[arg-type]


def test_a_clean_model_has_no_findings(tmp_path: Path) -> None:
    assert lint_of(clean(), tmp_path, precision="fp32", profiled=["batch"]) == ()


@pytest.mark.parametrize("rule", RULES["tensorrt"])
def test_a_model_that_breaks_a_rule_is_found_by_it_and_by_no_other(rule: str, tmp_path: Path) -> None:
    case = VIOLATIONS[rule]()
    found = lint_of(case.model, tmp_path, **case.asked)
    assert {each.rule for each in found} == {rule}, found
    assert {each.severity for each in found} == {"warning" if rule in WARNINGS else "error"}
    assert all(each.where and each.text and each.fix for each in found)


def test_every_rule_says_what_it_demands_and_by_which_source() -> None:
    for name, rule in RULES["tensorrt"].items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        text = inspect.getdoc(rule)
        assert text and "(" in text and len(text) > 40, name


def test_the_guide_names_the_rules_of_the_code_in_their_order() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning)", DOCS.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(RULES["tensorrt"])
    assert {name for name, severity in rows if severity == "warning"} == WARNINGS


@pytest.mark.parametrize(("k", "severity"), [(3839, None), (3840, "warning"), (3841, "error")])
def test_a_list_of_3840_is_the_last_that_top_k_may_give(k: int, severity: str, tmp_path: Path) -> None:
    found = lint_of(top_k(k, 9000), tmp_path)
    assert [each.severity for each in found] == ([severity] if severity else [])


def test_a_k_in_a_constant_node_is_a_constant(tmp_path: Path) -> None:
    made = model(node("Constant", out="k", value_ints=[3]), node("TopK", "x", "k", out=["y", "rows"]))
    assert lint_of(made, tmp_path) == ()


def test_an_int64_zero_softcap_is_told_to_be_dropped_and_a_real_one_to_be_computed(tmp_path: Path) -> None:
    assert "drop" in lint_of(attention(softcap=0.0), tmp_path, **NEWEST)[0].fix
    assert "compute" in lint_of(attention(softcap=30.0), tmp_path, **NEWEST)[0].fix


@pytest.mark.parametrize(
    ("version", "severity"),
    [(None, "warning"), ((10, 12), "error"), ((10, 13, 3), "error"), ((10, 14), None), ((11, 4, 0), None)],
)
def test_an_operator_is_held_against_the_version_that_is_meant(
    version: tuple[int, ...] | None, severity: str | None, tmp_path: Path
) -> None:
    found = lint_of(attention(), tmp_path, tensorrt=version)
    assert [(each.rule, each.severity) for each in found] == (
        [("parser-version", severity)] if severity else []
    )
    assert not severity or ("10.14 on" in found[0].text and "tensorrt-*" in found[0].fix)


@pytest.mark.parametrize("operator", ["DynamicQuantizeLinear", "MatMulInteger"])
def test_dynamic_int8_of_onnxruntime_is_refused_with_what_to_take_instead(
    operator: str, tmp_path: Path
) -> None:
    if operator == "DynamicQuantizeLinear":
        made = model(node(operator, "x", out=["y", "scale", "zero"]), outputs=[value("y", T.UINT8, None)])
    else:
        made = model(node(operator, "w", "w"), weights=[weight("w", np.ones((8, 8), np.int8))])
    faults = [each for each in lint_of(made, tmp_path) if each.rule == "operator"]
    assert "qdq" in faults[0].fix


def test_quantize_linear_without_a_zero_point_means_uint8_unless_it_says_otherwise(tmp_path: Path) -> None:
    def pair(**attributes: int) -> onnx.ModelProto:
        return model(
            node("QuantizeLinear", "x", "scale", out="q", **attributes),
            node("DequantizeLinear", "q", "scale"),
            weights=[weight("scale", np.float32(0.1))],
        )

    assert {each.rule for each in lint_of(pair(), tmp_path)} == {"quantized-type"}
    assert lint_of(pair(output_dtype=T.INT8), tmp_path) == ()


def test_zero_points_of_every_channel_are_read(tmp_path: Path) -> None:
    zeros = np.zeros(8, np.int8)
    assert lint_of(quantized(zeros), tmp_path) == ()
    zeros[5] = 2
    assert [each.rule for each in lint_of(quantized(zeros), tmp_path)] == ["zero-point"] * 2


@pytest.mark.parametrize(("halves", "severity"), [(100, None), (90, "warning"), (40, "error"), (0, "error")])
def test_a_promise_is_held_against_the_share_of_bytes(halves: int, severity: str, tmp_path: Path) -> None:
    """`halves`: percent of the bytes that are float16."""
    stored = [np.ones((1, 2 * halves), np.float16), np.ones((1, 100 - halves), np.float32)]
    made = model(RELU, weights=[weight(name, array) for name, array in zip("ab", stored, strict=True)])
    found = [each for each in lint_of(made, tmp_path, precision="fp16") if each.rule == "precision"]
    assert [each.severity for each in found] == ([severity] if severity else [])


def constant(array: np.ndarray, out: str) -> onnx.NodeProto:
    return node("Constant", out=out, value=weight("", array))


@pytest.mark.parametrize(
    ("halves", "severity"), [(0, "error"), (300, "error"), (900, "warning"), (20_000, None)]
)
def test_matrices_in_constant_nodes_count_as_weights_do(halves: int, severity: str, tmp_path: Path) -> None:
    """`halves`: rows of 16 bytes beside 8,192 bytes of float32."""
    made = model(
        constant(np.ones((8, 256), np.float32), "w"),
        *([constant(np.ones((halves, 8), np.float16), "h")] if halves else []),
        node("MatMul", "x", "w"),
    )
    found = lint_of(made, tmp_path, precision="fp16")
    assert [(each.rule, each.severity) for each in found] == ([("precision", severity)] if severity else [])


def test_a_constant_in_half_precision_that_is_cast_up_is_found_through_a_transpose(tmp_path: Path) -> None:
    made = model(
        constant(np.ones((8, 8), np.float16), "w"),
        node("Transpose", "w", out="t"),
        node("Cast", "t", out="c", to=T.FLOAT),
        node("MatMul", "x", "c"),
    )
    found = lint_of(made, tmp_path, precision="fp16")
    assert [(each.rule, each.where) for each in found] == [("precision-cast", "MatMul 'the-MatMul'")]
    assert "'w', stored in float16" in found[0].text


@pytest.mark.parametrize("asked", [None, "fp32"])
def test_where_no_less_than_float32_is_promised_a_cast_is_no_fault(asked: str | None, tmp_path: Path) -> None:
    found = lint_of(cast_up(), tmp_path, precision=asked)
    assert [each for each in found if each.rule == "precision-cast"] == []


def test_only_the_product_that_makes_the_scores_may_read_its_matrix_cast_up(tmp_path: Path) -> None:
    scoring = (
        node("Cast", "table", out="wide", to=T.FLOAT),
        node("Gemm", "user", "wide", out="all", transB=1),
        node("ScatterElements", "all", "seen", "low", out="scores", axis=1),
        node("TopK", "scores", "k", out=["y", "rows"]),
    )
    before = (node("Cast", "w", out="c", to=T.FLOAT), node("MatMul", "x", "c", out="user"))
    given: dict[str, Any] = {
        "inputs": [value("x", shape=(4, 8)), value("seen", T.INT64, (4, 2))],
        "weights": [
            weight("table", np.ones((9, 8), np.float16)), weight("w", np.ones((8, 8), np.float16)),
            weight("k", np.array([3])), weight("low", np.ones((4, 2), np.float32)),
        ],
    }  # fmt: skip
    both = lint_of(model(*before, *scoring, **given), tmp_path, precision="fp16")
    assert [each.where for each in both if each.rule == "precision-cast"] == ["MatMul 'the-MatMul'"]
    alone = lint_of(model(node("Relu", "x", out="user"), *scoring, **given), tmp_path, precision="fp16")
    assert [each for each in alone if each.rule == "precision-cast"] == []


def test_int8_that_is_promised_has_to_be_there(tmp_path: Path) -> None:
    found = lint_of(with_weight(np.ones((8, 8), np.float32)), tmp_path, precision="int8")
    assert [(each.rule, each.severity) for each in found] == [("precision", "error")]


def test_functions_that_the_file_defines_are_its_own_and_their_insides_are_checked(tmp_path: Path) -> None:
    inside = onnx.helper.make_node("Unique", ["a"], ["b"])
    function = onnx.helper.make_function(
        "mine", "F", ["a"], ["b"], [inside], [onnx.helper.make_opsetid("", 23)]
    )
    made = model(onnx.helper.make_node("F", ["x"], ["y"], domain="mine"), more=["mine"])
    made.functions.append(function)
    assert [each.rule for each in lint_of(made, tmp_path)] == ["data-dependent-shape"]


def test_operators_within_branches_are_checked(tmp_path: Path) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        return onnx.helper.make_graph(
            [onnx.helper.make_node(operator, ["x"], [operator])], operator, [], [value(operator)]
        )

    made = model(
        node("If", "c", then_branch=branch("Relu"), else_branch=branch("Bernoulli")),
        weights=[weight("c", np.array(True))],
    )
    assert [(each.rule, each.where) for each in lint_of(made, tmp_path)] == [
        ("operator", "Bernoulli 'Bernoulli'")
    ]


@pytest.mark.parametrize(("bytes_there", "text"), [(None, "missing"), (255, "cut"), (256, None)])
def test_external_weights_have_to_be_there_whole(bytes_there: int, text: str, tmp_path: Path) -> None:
    if bytes_there is not None:
        (tmp_path / "tiny.onnx.data").write_bytes(b"\0" * bytes_there)
    found = lint_of(outside_data(), tmp_path)
    assert [each.rule for each in found] == (["external-data"] if text else [])
    assert not text or text in found[0].text


def test_external_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    made = outside_data()
    made.graph.initializer[0].external_data[0].value = "../elsewhere.data"
    (tmp_path / "elsewhere.data").write_bytes(b"\0" * 256)
    (tmp_path / "below").mkdir()
    assert "outside" in lint_of(made, tmp_path / "below")[0].text


def test_half_precision_beside_the_graph_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.lint.graph.PIECE", 16)
    made = model(
        node("MatMul", "x", "w"), inputs=[value("x", T.FLOAT16)], outputs=[value("y", T.FLOAT16, None)],
        weights=[weight("w", np.ones((8, 8), np.float16))],
    )  # fmt: skip
    values = np.ones((8, 8), np.float16)
    values[7, 7] = np.inf
    tensor = made.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "tiny.onnx.data", offset=0, length=128)
    tensor.ClearField("raw_data")
    (tmp_path / "tiny.onnx.data").write_bytes(values.tobytes())
    assert [(each.rule, each.text[:2]) for each in lint_of(made, tmp_path)] == [("half-range", "1 ")]


def test_a_single_infinity_is_a_mask_and_no_fault(tmp_path: Path) -> None:
    made = model(
        node("Max", "x", "low"), inputs=[value("x", T.FLOAT16)], outputs=[value("y", T.FLOAT16, None)],
        weights=[weight("low", np.float16(-np.inf))],
    )  # fmt: skip
    assert lint_of(made, tmp_path) == ()


def test_too_many_bytes_for_one_file_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.lint.weights.LARGEST_INLINE", 2000)
    found = lint_of(with_weight(np.ones((8, 100), np.float32)), tmp_path)
    assert [each.rule for each in found] == ["external-data"] and "3,200 bytes" in found[0].text
