"""The body of a scoring graph gives the canonical scores with any table of the right width."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from export.body import cut_body, item_table, reads_vectors
from recommender.errors import StageError
from recommender.models.interface import History
from tests.export.bodies import canonical, scoring_graph, session, shapes, user_vectors
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, OnlyVectors, left_padded, tiny_model

QUICK = ("llama", "sasrec", "item-vectors", "popularity")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", EVERY)
def test_the_body_scores_like_the_canonical_graph(name: str) -> None:
    scoring = canonical(name)
    whole, body = session(scoring), session(cut_body(scoring))
    table = item_table(scoring).const_value.numpy()
    for items in shapes():
        rows, scores = whole.run(["top_items", "scores"], {"items": items, "seen": np.zeros_like(items)})
        mine = user_vectors(body, items, table) @ table.T
        assert np.isfinite(mine).all()
        mine = np.take_along_axis(mine, rows, axis=1)
        assert np.abs(mine - scores).max() <= 1e-5 * np.abs(scores).max()


@pytest.mark.parametrize("name", EVERY)
def test_the_body_has_named_axes_and_no_trace_of_the_catalogue(name: str) -> None:
    body = cut_body(canonical(name))
    width = item_table(canonical(name)).shape[1]
    proto = ir.to_proto(body)
    onnx.checker.check_model(proto, full_check=True)
    axes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    expected = {"items": ["batch", "length"], "vectors": ["batch", "length", width], "user": ["batch", width]}
    if name == "popularity":
        del expected["vectors"]
    assert axes == expected
    assert reads_vectors(body) == ("vectors" in expected)
    assert not any(N_ITEMS + 1 in entry.dims for entry in proto.graph.initializer)
    assert not {node.op_type for node in proto.graph.node} & {"TopK", "ScatterElements"}


def test_the_scoring_graph_is_left_as_it_was() -> None:
    scoring = scoring_graph(tiny_model("sasrec"))
    before = ir.to_proto(scoring).SerializeToString()
    cut_body(scoring)
    assert ir.to_proto(scoring).SerializeToString() == before


def test_another_catalogue_is_served_by_the_same_body() -> None:
    body = session(cut_body(canonical("llama")))
    old = item_table(canonical("llama")).const_value.numpy()
    order = np.concatenate(([0], 1 + np.random.default_rng(0).permutation(N_ITEMS)))
    new = np.concatenate((old[order], old[1:3]))  # reordered, and two more items
    items = left_padded(3, 7)
    moved = np.argsort(order)[items]
    np.testing.assert_array_equal(user_vectors(body, items, old), user_vectors(body, moved, new))


class Tied(OnlyVectors):
    """The mean of the items' vectors, with something wrong in a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.n_items, self.max_length = N_ITEMS, MAX_LENGTH
        generator = torch.Generator().manual_seed(0)
        self.items = nn.Parameter(torch.randn(N_ITEMS + 1, 4, generator=generator))
        self.other = nn.Parameter(torch.randn(N_ITEMS + 1, 4, generator=generator))

    def user_vector(self, history: History) -> Tensor:
        return self.look_up(history.items).mean(dim=1)

    def look_up(self, items: Tensor) -> Tensor:
        return nn.functional.embedding(items, self.items)

    def item_table(self) -> Tensor:
        return self.items


class Neighbours(Tied):
    """Mixes each vector with those that are like it in the whole table."""

    def look_up(self, items: Tensor) -> Tensor:
        return (super().look_up(items) @ self.items.T).softmax(dim=-1) @ self.items


class TwoTables(Tied):
    """Reads items by a table that is not the one it scores with."""

    def look_up(self, items: Tensor) -> Tensor:
        return super().look_up(items) + nn.functional.embedding(items, self.other)


class Untied(Tied):
    """Reads one table and scores with another."""

    def item_table(self) -> Tensor:
        return self.other


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Neighbours, "besides Gather and Gemm"),
        (TwoTables, "looked up by item"),
        (Untied, "looked up by item"),
    ],
)
def test_a_body_that_depends_on_the_catalogue_is_refused(model: type[Tied], message: str) -> None:
    session(cut_body(scoring_graph(Tied())))
    with pytest.raises(StageError, match=message):
        cut_body(scoring_graph(model()))


def misshapen(fault: str) -> ir.Model:
    model = scoring_graph(tiny_model("item-vectors"))
    graph = model.graph
    gemm = next(node for node in graph if node.op_type == "Gemm")
    match fault:
        case "input":
            graph.inputs[0].name = "rows"
        case "output":
            graph.outputs[1].name = "logits"
        case "bias":
            gemm.resize_inputs(3)
            gemm.replace_input_with(2, gemm.inputs[0])
        case "alpha":
            gemm.attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
        case "softmax":
            made = ir.node("Softmax", inputs=[gemm.outputs[0]])
            graph.insert_after(gemm, made)
            gemm.outputs[0].replace_all_uses_with(made.outputs[0])
            made.replace_input_with(0, gemm.outputs[0])
        case "half":
            item_table(model).dtype = ir.DataType.FLOAT16
    return model


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("input", "no input 'items'"),
        ("output", "no output 'scores'"),
        ("bias", "transB=1"),
        ("alpha", "transB=1"),
        ("softmax", "Gemm was expected to make .* but Softmax does"),
        ("half", "not float32"),
    ],
)
def test_a_graph_of_another_form_is_refused(fault: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        cut_body(misshapen(fault))
