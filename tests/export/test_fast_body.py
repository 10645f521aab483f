"""The fast body is the body, rewritten where a form is exactly met and nowhere else."""

import numpy as np
import onnx_ir as ir
import pytest

from export.body import cut_body, item_table
from export.fast.attention import join_heads
from export.fast.masks import add_masks, plain_padding
from export.fast.rotary import rotate_by_tables, rotate_last_query
from export.fast.surgery import nodes_of
from export.fast.tables import tabulate
from export.fast_body import fast_body
from recommender.errors import InputError
from tests.export.bodies import canonical, session, shapes, user_vectors
from tests.export.fixtures import MAX_LENGTH, MODELS

QUICK = ("llama", "grouped", "narrow", "sasrec", "item-vectors", "popularity")
EVERY = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in (*MODELS, "grouped", "prompted")
]


@pytest.mark.parametrize("name", EVERY)
def test_the_fast_body_gives_the_same_user_vectors(name: str) -> None:
    body = cut_body(canonical(name))
    table = item_table(canonical(name)).const_value.numpy()
    slow, fast = session(body), session(fast_body(body, max_length=MAX_LENGTH).model)
    for items in shapes():
        expected, mine = (user_vectors(each, items, table) for each in (slow, fast))
        assert np.isfinite(mine).all()
        assert np.abs(mine - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", EVERY)
def test_inputs_and_output_stay_as_they_were(name: str) -> None:
    body = cut_body(canonical(name))
    before = ir.to_proto(body).SerializeToString()
    fast = fast_body(body, max_length=MAX_LENGTH).model
    assert ir.to_proto(body).SerializeToString() == before
    for mine, theirs in ((fast.graph.inputs, body.graph.inputs), (fast.graph.outputs, body.graph.outputs)):
        assert [(v.name, v.shape, v.dtype) for v in mine] == [(v.name, v.shape, v.dtype) for v in theirs]


def test_every_pass_that_llama_needs_fires_on_it() -> None:
    fast = fast_body(cut_body(canonical("llama")), max_length=MAX_LENGTH)
    assert fast.fired == {
        "split_products": 0,
        "tabulate": 5,  # mask; cos and sin of all positions and of the last one
        "plain_padding": 1,
        "add_masks": 1,
        "rotate_by_tables": 3,  # two keys, one query
        "rotate_last_query": 1,
        "join_heads": 2,
        "constant_reshapes": 0,  # no Reshape is left
    }
    operators = {node.op_type for node in fast.model.graph}
    assert not operators & {"Transpose", "Reshape", "Expand", "Range", "Cos", "Sin", "GatherND", "And"}
    assert fast.model.graph.opset_imports == {"": 23, "com.microsoft": 1}


@pytest.mark.parametrize(
    ("name", "fired"),
    [
        ("sasrec", {"split_products": 2, "tabulate": 1, "add_masks": 1, "join_heads": 2}),
        ("popularity", {}),
        ("narrow", {"rotate_by_tables": 3, "join_heads": 2}),
        pytest.param("phi3", {"split_products": 4, "join_heads": 2}, marks=pytest.mark.slow),
        pytest.param("gemma2", {"add_masks": 2, "join_heads": 0}, marks=pytest.mark.slow),
        pytest.param("gpt_neox", {"rotate_by_tables": 3, "constant_reshapes": 5}, marks=pytest.mark.slow),
        pytest.param("prompted", {"rotate_by_tables": 0, "join_heads": 1}, marks=pytest.mark.slow),
        pytest.param("fixed-slots", {"rotate_by_tables": 3, "rotate_last_query": 1}, marks=pytest.mark.slow),
    ],
)
def test_passes_fire_where_their_form_is(name: str, fired: dict[str, int]) -> None:
    fast = fast_body(cut_body(canonical(name)), max_length=MAX_LENGTH)
    assert {key: fast.fired[key] for key in fired} == fired
    if not fired:
        assert not any(fast.fired.values())


def test_a_body_without_vendor_operators_asks_for_none() -> None:
    fast = fast_body(cut_body(canonical("sasrec")), max_length=MAX_LENGTH)
    assert fast.model.graph.opset_imports == {"": 23}


def test_grouped_keys_are_read_once() -> None:
    fast = fast_body(cut_body(canonical("grouped")), max_length=MAX_LENGTH)
    (heads,) = {
        (node.attributes["q_num_heads"].value, node.attributes["kv_num_heads"].value)
        for node in nodes_of(fast.model.graph, "Attention")
    }
    assert heads == (4, 2)
    assert not nodes_of(fast.model.graph, "Expand")


def test_a_maximum_length_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="max_length is 0"):
        fast_body(cut_body(canonical("sasrec")), max_length=0)


def test_a_body_in_half_precision_is_refused() -> None:
    body = cut_body(canonical("sasrec"))
    half = ir.Value(name="half", const_value=ir.tensor(np.ones(2, np.float16), name="half"))
    half.type = ir.TensorType(ir.DataType.FLOAT16)
    body.graph.register_initializer(half)
    with pytest.raises(InputError, match="FLOAT16"):
        fast_body(body, max_length=MAX_LENGTH)


def test_a_history_beyond_the_tables_fails_and_is_not_cut() -> None:
    body = cut_body(canonical("llama"))
    fast = session(fast_body(body, max_length=5).model)
    table = item_table(canonical("llama")).const_value.numpy()
    user_vectors(fast, np.ones((2, 5), np.int64), table)
    with pytest.raises(Exception, match="RotaryEmbedding"):
        user_vectors(fast, np.ones((2, 6), np.int64), table)


def tabulated() -> ir.Model:
    """The body of llama as the passes about masks and rotations find it."""
    body = cut_body(canonical("llama"))
    assert tabulate(body, MAX_LENGTH) == 5
    assert plain_padding(body, MAX_LENGTH) == 1
    return body


def test_a_mask_that_something_else_reads_stays_boolean() -> None:
    body = tabulated()
    (joined,) = nodes_of(body.graph, "And")
    body.graph.append(ir.node("Not", inputs=[joined.outputs[0]]))
    assert add_masks(body) == 0


def test_a_mask_that_is_not_of_a_table_stays_boolean() -> None:
    body = cut_body(canonical("llama"))  # before `tabulate`
    assert add_masks(body) == 0


def test_interleaved_rotation_stays_with_the_standard_operator() -> None:
    body = tabulated()
    first = nodes_of(body.graph, "RotaryEmbedding")[0]
    first.attributes["interleaved"] = ir.AttrInt64("interleaved", 1)
    assert rotate_by_tables(body) == 2


def test_rotation_by_angles_of_two_offsets_stays_as_it_is() -> None:
    body = tabulated()
    first = nodes_of(body.graph, "RotaryEmbedding")[0]
    cut = first.inputs[2].producer().inputs[0].producer()  # Expand of Slice
    assert cut.op_type == "Slice"
    moved = ir.Value(name="moved", const_value=ir.tensor(np.array([1])), shape=ir.Shape([1]))
    body.graph.register_initializer(moved)
    cut.replace_input_with(1, moved)
    assert rotate_by_tables(body) == 0  # all three read the same two cuts


@pytest.mark.parametrize("fault", ["halves", "sign", "angle"])
def test_a_last_query_that_is_turned_otherwise_stays_as_it_is(fault: str) -> None:
    body = tabulated()
    (negated,) = nodes_of(body.graph, "Neg")
    (turned,) = (node for node in negated.outputs[0].consumers() if node.op_type == "Concat")
    match fault:
        case "halves":
            upper, lower = turned.inputs
            turned.replace_input_with(0, lower)
            turned.replace_input_with(1, upper)
        case "sign":
            turned.replace_input_with(0, negated.inputs[0])
        case "angle":
            (product,) = turned.outputs[0].consumers()
            product.replace_input_with(1, negated.inputs[0])
    assert rotate_last_query(body) == 0


@pytest.mark.parametrize("fault", ["read twice", "transposed otherwise", "in between"])
def test_an_attention_of_another_form_keeps_its_heads_apart(fault: str) -> None:
    body = tabulated()
    assert rotate_last_query(body) == 1
    node = nodes_of(body.graph, "Attention")[0]
    match fault:
        case "read twice":
            body.graph.append(ir.node("Neg", inputs=[node.outputs[0]]))
        case "transposed otherwise":
            node.inputs[2].producer().attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 3, 1])
        case "in between":
            made = ir.node("Neg", inputs=[node.inputs[2]])
            body.graph.insert_before(node, made)
            node.replace_input_with(2, made.outputs[0])
    assert join_heads(body) == 1  # the other block's
