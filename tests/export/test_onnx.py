from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from export.contract import ScoringExporterConfig, ScoringSizes
from export.graph import ScoringGraph
from export.onnx import check_onnx, export_onnx
from recommender.errors import InputError, StageError
from recommender.models.interface import History, SequentialRecommender
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, TOP_K, OnlyVectors, left_padded, tiny_model

CONTRACT = ScoringExporterConfig(ScoringSizes(N_ITEMS, MAX_LENGTH, TOP_K))
NOTHING = np.zeros((1, 1), np.int64)


def answer(path: Path, items: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    rows, scores = session.run(["top_items", "scores"], {"items": items, "seen": seen})
    return rows, scores


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, MAX_LENGTH), (9, 7), (32, MAX_LENGTH), (3, 2)])
def test_onnx_ranks_like_torch_at_every_shape(
    exported: Path, sasrec: SequentialRecommender, batch: int, length: int
) -> None:
    items = left_padded(batch, length)
    for seen in (np.zeros((batch, 1), np.int64), items):
        rows, scores = answer(exported / "catalogue-1/fp32.onnx", items, seen)
        with torch.no_grad():
            expected, expected_scores = ScoringGraph(sasrec, TOP_K)(
                torch.from_numpy(items), torch.from_numpy(seen)
            )
        np.testing.assert_array_equal(rows, expected.numpy())
        np.testing.assert_allclose(scores, expected_scores.numpy(), atol=1e-5)


def test_the_file_is_opset_23_without_vendor_operators(exported: Path) -> None:
    model = onnx.load(exported / "catalogue-1/fp32.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
    assert {node.domain for node in model.graph.node} == {""}
    assert {"Attention", "TopK"} <= {node.op_type for node in model.graph.node}


def test_axes_carry_the_names_of_the_contract(exported: Path) -> None:
    graph = onnx.load(exported / "catalogue-1/fp32.onnx").graph
    axes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes == {
        "items": ["batch", "length"],
        "seen": ["batch", "seen"],
        "top_items": ["batch", TOP_K],
        "scores": ["batch", TOP_K],
    }


def test_the_file_tells_nothing_of_the_machine_that_made_it(exported: Path) -> None:
    content = (exported / "catalogue-1/fp32.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content


def test_default_attributes_are_left_out(exported: Path) -> None:
    nodes = onnx.load(exported / "catalogue-1/fp32.onnx").graph.node
    names = {attribute.name for node in nodes if node.op_type == "Attention" for attribute in node.attribute}
    assert "softcap" not in names and "qk_matmul_output_mode" not in names


class Tied(OnlyVectors):
    """The mean of the items' vectors, scored against the same vectors."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items, self.max_length = n_items, MAX_LENGTH
        self.items = torch.nn.Embedding(n_items + 1, 4)

    def user_vector(self, history: History) -> torch.Tensor:
        return self.items(history.items).mean(dim=1)

    def item_table(self) -> torch.Tensor:
        return self.items.weight


def test_a_tied_item_table_is_stored_once(tmp_path: Path) -> None:
    facts = export_onnx(Tied(2000), tmp_path / "tied.onnx", top_k=3)  # small tables torch shares by itself
    graph = onnx.load(tmp_path / "tied.onnx").graph
    (table,) = (entry.name for entry in graph.initializer if list(entry.dims) == [2001, 4])
    assert sorted(node.op_type for node in graph.node if table in node.input) == ["Gather", "Gemm"]
    assert facts.size_bytes < 1.5 * 2001 * 4 * 4


def test_equal_scores_stand_in_row_order(tmp_path: Path) -> None:
    model = tiny_model("popularity")
    export_onnx(model, tmp_path / "popularity.onnx", top_k=N_ITEMS)
    rows, scores = answer(tmp_path / "popularity.onnx", left_padded(2, 3), np.zeros((2, 1), np.int64))
    assert (np.diff(scores[0]) == 0).any()
    order = np.lexsort((rows[0], -scores[0]))
    np.testing.assert_array_equal(order, np.arange(N_ITEMS))


def test_large_weights_go_into_a_file_beside_the_graph(tmp_path: Path) -> None:
    model = tiny_model("popularity", n_items=2000)
    whole = export_onnx(model, tmp_path / "whole.onnx", top_k=3)
    split = export_onnx(model, tmp_path / "split.onnx", top_k=3, largest_file=0)
    assert whole.files == ("whole.onnx",)
    assert split.files == ("split.onnx", "split.onnx.data")
    assert (
        (tmp_path / "split.onnx").stat().st_size < 4 * 2000 <= (tmp_path / "split.onnx.data").stat().st_size
    )
    for one, other in zip(
        answer(tmp_path / "whole.onnx", NOTHING, NOTHING),
        answer(tmp_path / "split.onnx", NOTHING, NOTHING),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_model_that_reads_one_item_runs_at_any_batch(tmp_path: Path) -> None:
    export_onnx(tiny_model("popularity", max_length=1), tmp_path / "one.onnx", top_k=3)
    for users in (1, 5):
        rows, _ = answer(tmp_path / "one.onnx", left_padded(users, 1), np.zeros((users, 1), np.int64))
        assert rows.shape == (users, 3)


class FixedBatch(Tied):
    """Looks innocent, but len() makes the batch size a constant of the traced graph."""

    def user_vector(self, history: History) -> torch.Tensor:
        return self.items(history.items).mean(dim=1) + torch.arange(len(history.items)).unsqueeze(1)


class Branching(Tied):
    """Reads a value of its input to decide what to do."""

    def user_vector(self, history: History) -> torch.Tensor:
        return self.items(history.items).sum(dim=1) * (1 if history.items.max() > 3 else 2)


@pytest.mark.parametrize("model", [FixedBatch(N_ITEMS), Branching(N_ITEMS)], ids=["len", "branch"])
def test_a_model_that_cannot_be_traced_fails_loudly(tmp_path: Path, model: SequentialRecommender) -> None:
    with pytest.raises(StageError) as caught:
        export_onnx(model, tmp_path / "model.onnx", top_k=3)
    assert caught.value.exit_code == 1


def test_a_top_k_beyond_the_catalogue_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top_k is 41"):
        export_onnx(tiny_model("popularity"), tmp_path / "model.onnx", top_k=N_ITEMS + 1)
    assert not list(tmp_path.iterdir())


def broken(exported: Path, tmp_path: Path, fault: str) -> Path:
    model = onnx.load(exported / "catalogue-1/fp32.onnx")
    match fault:
        case "vendor":
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
            model.graph.node.append(helper.make_node("Gelu", ["scores"], ["extra"], domain="com.microsoft"))
        case "opset":
            model.opset_import[0].version = 24
        case "batch":
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
        case "name":
            model.graph.input[1].name = "visited"
            for node in model.graph.node:
                node.input[:] = ["visited" if name == "seen" else name for name in node.input]
        case "cut":
            del model.graph.node[5]
    onnx.save(model, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("vendor", "com.microsoft"),
        ("opset", "opset 24 instead of 23"),
        ("batch", "axis 0 of 'items' is 3, not 'batch'"),
        ("name", "visited"),
        ("cut", "not valid ONNX"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(
    exported: Path, tmp_path: Path, fault: str, message: str
) -> None:
    check_onnx(exported / "catalogue-1/fp32.onnx", CONTRACT)
    with pytest.raises(StageError, match=message):
        check_onnx(broken(exported, tmp_path, fault), CONTRACT)
