"""The passes that know nothing of models, on graphs of a few nodes."""

import numpy as np
import onnx_ir as ir
import pytest

from export.fast.masks import plain_padding
from export.fast.products import split_products
from export.fast.shapes import constant_reshapes
from export.fast.tables import tabulate
from tests.export.bodies import graph_of, session

LONGEST = 7


def run(model: ir.Model, batch: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    found = session(model)
    feeds = {
        "items": rng.integers(0, 5, (batch, length)),
        "vectors": rng.normal(size=(batch, length, 4)).astype(np.float32),
    }
    out: np.ndarray = found.run(None, {value.name: feeds[value.name] for value in found.get_inputs()})[0]
    return out


def assert_same(one: ir.Model, other: ir.Model) -> None:
    for batch, length in ((1, 1), (1, 5), (3, 3), (2, LONGEST)):
        np.testing.assert_allclose(run(one, batch, length), run(other, batch, length), rtol=1e-6, atol=1e-6)


def over_length(made: str, join: str = "out = Add(vectors, found)") -> ir.Model:
    """`found` is made of the length; a position is a float [L, 1]."""
    return graph_of(
        f"""tiny (int64[batch, length] items, float[batch, length, 4] vectors) => (float[n, m, k] out)
        <int64 zero = {{0}}, int64 one = {{1}}, int64[1] ones = {{1}}, int64[1] minus = {{-1}},
         int64[1] huge = {{9223372036854775807}}, int64[1] zeros = {{0}}, float half = {{0.5}},
         int64[4] tall = {{-1, 1, 1, 1}}, int64[4] flat = {{1, 1, 1, -1}}>
        {{
            size = Shape<start = 1, end = 2>(items)
            users = Shape<start = 0, end = 1>(items)
            length1 = Squeeze(size)
            range1 = Range(zero, length1, one)
            numbers = Unsqueeze(range1, ones)
            position = Cast<to = 1>(numbers)
            sized = Cast<to = 1>(size)
            {made}
            {join}
        }}"""
    )


FORMS = {
    "from the start": "found = Cos(position)",
    "to the end": "late = Sub(position, sized) found = Sin(late)",
    "square": "row = Transpose<perm = [1, 0]>(position) below = LessOrEqual(row, position) "
    "real = Cast<to = 1>(below) found1 = ReduceSum<keepdims = 1>(real, ones) found = Cos(found1)",
    "one row": "all = Cos(position) found = Slice(all, minus, huge, zeros)",
    "the same always": "late = Sub(position, sized) all = Cos(late) found = Slice(all, minus, huge, zeros)",
    "repeated over users": "all = Cos(position) three = Unsqueeze(all, zeros) "
    "shape = Concat<axis = 0>(users, ones, ones) found = Expand(three, shape)",
}


@pytest.mark.parametrize("made", FORMS.values(), ids=FORMS)
def test_what_follows_the_length_is_read_from_a_table(made: str) -> None:
    before, after = over_length(made), over_length(made)
    assert tabulate(after, LONGEST) == 1
    assert not {node.op_type for node in after.graph} & {"Range", "Cos", "Sin", "ReduceSum"}
    assert_same(before, after)


def test_a_square_mask_is_cut_on_both_axes() -> None:
    made = "row = Transpose<perm = [1, 0]>(position) below = LessOrEqual(row, position)"
    join = "real = Cast<to = 1>(below) out = MatMul(real, vectors)"
    before, after = (over_length(made, join) for _ in range(2))
    assert tabulate(after, LONGEST) == 1
    (table,) = (value for value in after.graph.initializers.values() if value.name.startswith("table"))
    assert table.shape == (LONGEST, LONGEST)
    assert_same(before, after)


def test_a_mask_of_a_long_history_is_tried_at_some_lengths_and_still_refused() -> None:
    squares = "row = Transpose<perm = [1, 0]>(position) far = Sub(position, row)"
    join = "out = MatMul(real, vectors)"
    cut = over_length(f"{squares} late = Cos(far) real = Identity(late)", join)
    assert tabulate(cut, 300) == 1
    stretched = over_length(f"{squares} real = Div(far, sized)", join)
    assert tabulate(stretched, 300) == 0


@pytest.mark.parametrize(
    "made",
    [
        "found = Div(position, sized)",  # stretches with the length
        "vector = Gather<axis = 1>(items, zero) first = Cast<to = 1>(vector) "
        "three = Unsqueeze(first, ones) four = Unsqueeze(three, ones) found = Mul(four, half)",
        "wide = Unsqueeze(position, zeros) many = Range(zero, users1, one) real = Cast<to = 1>(many) "
        "three = Unsqueeze(real, ones) four = Unsqueeze(three, ones) found = Mul(four, wide)",
    ],
    ids=["stretched", "content", "differs by user"],
)
def test_what_is_no_cut_of_a_table_is_computed_as_before(made: str) -> None:
    if "users1" in made:
        made = f"users1 = Squeeze(users) {made}"
    before, after = over_length(made), over_length(made)
    assert tabulate(after, LONGEST) == 0
    assert {node.op_type for node in after.graph} >= {"Mul" if "Mul" in made else "Div"}
    assert_same(before, after)


def padded_by(grid: str) -> ir.Model:
    return over_length(
        f"""users1 = Squeeze(users) user = Range(zero, users1, one)
        wide = Reshape(user, tall) shape = Concat<axis = 0>(users, ones, ones, size)
        row = Reshape(range1, flat) late = Sub(length1, row) last = Sub(late, one)
        b = Expand(wide, shape) l = Expand({grid}, shape)
        b5 = Unsqueeze(b, minus) l5 = Unsqueeze(l, minus) pairs = Concat<axis = -1>(b5, l5)
        real = Cast<to = 9>(items) number = Cast<to = 7>(real) again = Cast<to = 9>(number)
        found = GatherND(again, pairs)""",
        """three = Squeeze(found, ones) turned = Transpose<perm = [0, 2, 1]>(three)
        factor = Cast<to = 1>(turned) out = Mul(vectors, factor)""",
    )


@pytest.mark.parametrize(("grid", "fired"), [("row", 1), ("last", 0)], ids=["each pair", "backwards"])
def test_padding_that_is_looked_up_at_every_pair_is_read_directly(grid: str, fired: int) -> None:
    before, after = padded_by(grid), padded_by(grid)
    assert plain_padding(after, LONGEST) == fired
    assert ("GatherND" in {node.op_type for node in after.graph}) == (not fired)
    assert_same(before, after)


def product(cuts: str) -> ir.Model:
    model = graph_of(
        f"""tiny (int64[batch, length] items, float[batch, length, 4] vectors) => (float[n, m, k] out)
        <float[4, 6] weight = {{{", ".join(str(0.1 * i) for i in range(24))}}},
         float[6] bias = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0}}, int64[1] zero = {{0}}, int64[1] two = {{2}},
         int64[1] three = {{3}}, int64[1] huge = {{9223372036854775807}}>
        {{
            plain = MatMul(vectors, weight)
            wide = Add(plain, bias)
            {cuts}
        }}"""
    )
    return model


CUTS = {
    "split": "a, b = Split<axis = -1, num_outputs = 2>(wide) out = Mul(a, b)",
    "slices": "a = Slice(wide, zero, three, two) b = Slice(wide, three, huge, two) out = Mul(a, b)",
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_product_that_is_cut_becomes_products(cuts: str) -> None:
    before, after = product(cuts), product(cuts)
    assert split_products(after) == 1
    assert sorted(node.op_type for node in after.graph) == ["Add", "Add", "MatMul", "MatMul", "Mul"]
    assert_same(before, after)


@pytest.mark.parametrize(
    "cuts",
    [
        "a, b = Split<axis = -1, num_outputs = 2>(wide) c = Relu(wide) out = Concat<axis = 2>(a, b, c)",
        "a = Slice(wide, zero, three, two) b = Slice(wide, two, huge, two) out = Concat<axis = 2>(a, b)",
        "a, b = Split<axis = 0, num_outputs = 2>(wide) out = Concat<axis = 0>(b, a)",
    ],
    ids=["read whole", "overlapping", "other axis"],
)
def test_a_product_that_is_read_otherwise_stays_whole(cuts: str) -> None:
    model = product(cuts)
    assert split_products(model) == 0


def reshaped(target: str, after: str) -> ir.Model:
    return graph_of(
        f"""tiny (int64[batch, length] items, float[batch, length, 4] vectors) => (float[{after}] out)
        <int64[1] two = {{2}}, int64[1] four = {{4}}, int64[1] minus = {{-1}}>
        {{
            users = Shape<start = 0, end = 1>(items)
            size = Shape<start = 1, end = 2>(items)
            target = Concat<axis = 0>({target})
            out = Reshape<allowzero = 1>(vectors, target)
        }}"""
    )


@pytest.mark.parametrize(
    ("target", "after", "constant"),
    [
        ("users, size, two, minus", "batch, length, 2, 2", [0, 0, 2, 2]),
        ("minus, four", "tokens, 4", [-1, 4]),
    ],
)
def test_a_reshape_of_known_sizes_gets_a_constant_target(
    target: str, after: str, constant: list[int]
) -> None:
    before, rewritten = reshaped(target, after), reshaped(target, after)
    assert constant_reshapes(rewritten) == 1
    (node,) = rewritten.graph
    assert list(node.inputs[1].const_value.numpy()) == constant
    assert_same(before, rewritten)


def test_a_reshape_with_two_unknown_sizes_is_left_alone() -> None:
    assert constant_reshapes(reshaped("size, users, four", "length, batch, 4")) == 0
