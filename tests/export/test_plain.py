"""Graphs of engines in plain operators: nothing of opset 23 is left, and the lists are those of before."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from export.half import to_half
from export.half_check import rounded_in_float
from export.plain import OPSET, plain_operators
from export.static import static_graph
from export.variants import HalfKind
from tests.export.bodies import canonical, graph_of, session
from tests.export.fixtures import MAX_LENGTH, MODELS, left_padded
from tests.export.test_half import STEP, distance, types_of

OFTEN = ("llama", "narrow", "gpt2", "sasrec")
NAMES = ["popularity", "item-vectors", "grouped", "prompted"]
EVERY = [
    name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
    for name in dict.fromkeys([*MODELS, *NAMES])
]
OF_23 = {"Attention", "RMSNormalization", "RotaryEmbedding"}


def answers(model: ir.Model, users: int = 8) -> list[Any]:
    """top_items and scores; one user has no item."""
    items = left_padded(users, MAX_LENGTH)
    items[users // 2] = 0
    given = {"items": items, "seen": left_padded(users, 8, seed=1)}
    found: list[Any] = session(model).run(["top_items", "scores"], given)
    return found


def static(name: str) -> ir.Model:
    return static_graph(canonical(name), length=MAX_LENGTH, seen=8)


def real(scores: np.ndarray) -> np.ndarray:
    """Scores that are no mask, of users with items."""
    kept = np.delete(scores, len(scores) // 2, axis=0)
    return np.where(np.isneginf(kept), 0, kept)


@pytest.mark.parametrize("name", EVERY)
def test_it_lists_what_the_graph_before_listed(name: str) -> None:
    before = static(name)
    kinds = {node.op_type for node in before.graph}
    made = plain_operators(before)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert not OF_23 & {node.op_type for node in made.graph}
    assert made.graph.opset_imports == {"": OPSET}
    assert {node.op_type for node in before.graph} == kinds  # the given one is left as it is
    for users in (2, 8):
        (rows, scores), (right, wanted) = answers(made, users), answers(before, users)
        assert not np.isnan(scores).any()
        np.testing.assert_allclose(real(scores), real(wanted), rtol=1e-5, atol=1e-5)
        if name != "popularity":
            np.testing.assert_array_equal(np.delete(rows, users // 2, 0), np.delete(right, users // 2, 0))


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("name", EVERY)
def test_in_half_precision_it_is_as_near_as_the_graph_before(name: str, kind: HalfKind) -> None:
    whole = static(name)
    half = to_half(whole, kind)
    made = plain_operators(half)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert not OF_23 & {node.op_type for node in made.graph} and made.graph.opset_imports == {"": OPSET}
    exact = real(answers(whole)[1])
    twin = answers(rounded_in_float(made, kind))[1]
    assert not np.isnan(twin).any()
    assert distance(real(twin), exact) < 6 * STEP[kind]
    if kind == "fp16":
        found = answers(made)[1]
        assert not np.isnan(found).any() and distance(real(found), exact) < 6 * STEP[kind]


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["llama", "sasrec"])
def test_products_are_half_and_softmax_masks_and_norms_are_not(name: str, kind: HalfKind) -> None:
    model = ir.to_proto(plain_operators(to_half(static(name), kind)))
    types, half = types_of(model), {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[kind]
    made = {name: node for node in model.graph.node for name in node.output}
    seen = []
    for node in model.graph.node:
        kinds = {types[entry] for entry in [*node.input, *node.output] if entry}
        if node.op_type in ("Softmax", "ReduceMean", "Sqrt", "Div", "Where", "LayerNormalization"):
            assert half not in kinds, node.op_type
        elif node.op_type == "MatMul":
            assert kinds == {half}
        if node.op_type == "Softmax":
            added = made[node.input[0]]
            assert added.op_type == "Add" and {types[entry] for entry in added.input} == {TensorProto.FLOAT}
        seen.append(node.op_type)
    assert seen.count("Softmax") == 2 and seen.count("MatMul") > 8


def attention(head: str, heads: int, attributes: str = "", mask: str = "") -> ir.Model:
    inputs = ", ".join(
        f"{head} [batch, {count}, {length}, 8] {name}"
        for name, count, length in (("q", 4, 3), ("k", heads, 5), ("v", heads, 5))
    )
    more = f", {mask} m" if mask else ""
    return graph_of(
        f"g ({inputs}{more}) => ({head} [batch, 4, 3, 8] y) "
        f"{{ y = Attention{attributes} (q, k, v{', m' if mask else ''}) }}"
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("attributes", "mask"),
    [
        ("", ""),
        ("<scale: float = 0.3>", "bool [batch, 1, 3, 5]"),
        ("<is_causal: int = 1>", ""),
        ("<is_causal: int = 1>", "float [1, 4, 3, 5]"),
    ],
)
def test_attention_is_written_out_as_the_runtime_computes_it(heads: int, attributes: str, mask: str) -> None:
    before = attention("float", heads, attributes, mask)
    made = plain_operators(before)
    assert "Attention" not in {node.op_type for node in made.graph}
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        name: rng.normal(size=(2, count, length, 8)).astype(np.float32)
        for name, count, length in (("q", 4, 3), ("k", heads, 5), ("v", heads, 5))
    }
    if mask.startswith("bool"):
        given["m"] = rng.random((2, 1, 3, 5)) < 0.6
        given["m"][..., 0] = True
    elif mask:
        given["m"] = rng.normal(size=(1, 4, 3, 5)).astype(np.float32)
    found, right = (session(model).run(None, given)[0] for model in (made, before))
    np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_rotary_embeddings_turn_what_they_did(turned: int, batch: int) -> None:
    half = (turned or 8) // 2
    before = graph_of(
        f"g (float [2, 3, 5, 8] x, float [2, 5, {half}] cos, float [2, 5, {half}] sin) => "
        f"(float [2, 3, 5, 8] y) {{ y = RotaryEmbedding<rotary_embedding_dim: int = {turned}, "
        "num_heads: int = 3> (x, cos, sin) }"
    )
    made = plain_operators(before)
    assert "RotaryEmbedding" not in {node.op_type for node in made.graph}
    rng = np.random.default_rng(batch)
    given = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("x", (2, 3, 5, 8)), ("cos", (2, 5, half)), ("sin", (2, 5, half)))
    }
    found, right = (session(model).run(None, given)[0] for model in (made, before))
    np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "g (float [2, 3, 5, 8] x, float [2, 5, 4] c) => (float [2, 3, 5, 8] y) "
        "{ y = RotaryEmbedding<interleaved: int = 1> (x, c, c) }",
        "g (float [2, 5, 24] x, float [2, 5, 4] c) => (float [2, 5, 24] y) "
        "{ y = RotaryEmbedding<num_heads: int = 3> (x, c, c) }",
        "g (float [2, 3, 5, 8] x) => (float [2, 3, 5, 8] y) "
        "{ y = Attention<softcap: float = 30.0> (x, x, x) }",
        "g (float [2, 5, 24] x) => (float [2, 5, 24] y) "
        "{ y = Attention<q_num_heads: int = 3, kv_num_heads: int = 3> (x, x, x) }",
        "g (float [2, 5, 8] x, float [5, 8] w) => (float [2, 5, 8] y) "
        "{ y = RMSNormalization<axis: int = 1> (x, w) }",
    ],
)
def test_other_forms_are_left_alone_at_their_opset(text: str) -> None:
    made = plain_operators(graph_of(text))
    assert OF_23 & {node.op_type for node in made.graph} and made.graph.opset_imports[""] == 23
