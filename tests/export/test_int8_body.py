import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.artifact import keep_variants
from export.int8_body import quantize_body
from export.refresh import refresh_items
from export.runtime import Artifact, read_manifest
from recommender.data.prepared import Prepared
from recommender.errors import StageError
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from tests.export.fixtures import MAX_LENGTH, left_padded, make_artifact, tiny_model
from tests.export.test_refresh import present


@pytest.fixture(scope="module")
def make(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def made(model: SequentialRecommender, users: int = 1) -> Path:
        folder = tmp_path_factory.mktemp("int8") / "artifact"
        return make_artifact(model, folder, prepared, variants=("fast", "int8-body"), int8_users=users)

    return made


@pytest.mark.parametrize("family", ["llama", "gpt2", "sasrec", "narrow"])
def test_the_bytes_that_a_call_has_to_read_are_no_more_than_are_stored(
    family: str, make: Callable[..., Path]
) -> None:
    folder = make(tiny_model(family))
    cost = read_manifest(folder)["variants"][-1]["cost"]
    read = sum(cost["parts"][part]["bytes"].get("call", 0) for part in ("embedding", "blocks", "head"))
    stored = onnx.load(folder / "body-int8.onnx").graph.initializer
    assert 0 < read <= sum(onnx.numpy_helper.to_array(entry).nbytes for entry in stored)


@pytest.mark.parametrize("family", ["llama", "gpt2", "sasrec", "narrow"])
def test_every_product_with_weights_is_in_8_bits_and_the_vectors_are_near(
    family: str, make: Callable[..., Path]
) -> None:
    folder = make(tiny_model(family))
    nodes = onnx.load(folder / "body-int8.onnx").graph.node
    assert not [node for node in nodes if node.op_type == "MatMul" and node.input[1].endswith("weight")]
    assert sum("MatMulInteger" in node.op_type for node in nodes) or any(
        node.op_type == "DynamicQuantizeMatMul" for node in nodes
    )
    items = HistoryArrays(left_padded(20, MAX_LENGTH))
    fast, int8 = (
        Artifact(folder, variant=name, threads=1).user_vectors(items) for name in ("fast", "int8-body")
    )
    cosine = (fast * int8).sum(1) / np.linalg.norm(fast, axis=1) / np.linalg.norm(int8, axis=1)
    assert cosine.min() > 0.98 and not np.array_equal(fast, int8)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 exports some of its products as Gemm
def test_as_many_products_as_it_says(family: str, prepared: Prepared, tmp_path: Path) -> None:
    folder = make_artifact(tiny_model(family), tmp_path / "artifact", prepared, variants=("fast",))
    count = quantize_body(folder / "body.onnx", tmp_path / "out.onnx")
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    assert count == sum("MatMulInteger" in node.op_type for node in nodes) > 0


def test_calls_hold_no_more_users_than_quality_was_measured_with(make: Callable[..., Path]) -> None:
    model = tiny_model("llama")
    items = HistoryArrays(left_padded(12, MAX_LENGTH))
    alone = Artifact(make(model), variant="int8-body", threads=1)
    one_by_one = np.concatenate(
        [alone.user_vectors(HistoryArrays(items.items[i : i + 1])) for i in range(12)]
    )
    np.testing.assert_array_equal(alone.user_vectors(items), one_by_one)
    crowd = Artifact(make(model, users=8), variant="int8-body", threads=1)
    assert max(len(users) for users, _ in crowd._calls(items.items)) == 8
    assert not np.array_equal(crowd.user_vectors(items), one_by_one)  # they share scales


def test_it_is_never_the_default_and_survives_a_refresh(make: Callable[..., Path]) -> None:
    folder = make(tiny_model("sasrec"))
    keep_variants(folder, ["fp32", "fast", "int8-body"], "fast", {})
    items, vectors = present(folder)
    refresh_items(folder, items, vectors)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["variants"][-1]
    assert (entry["name"], entry["users_per_call"], entry["precision"]) == (
        "int8-body",
        1,
        "body int8, scan int8",
    )
    assert Artifact(folder, variant="int8-body").top_k(HistoryArrays(np.array([[3]])), 5).items.all()


def test_a_body_without_weights_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    folder = make_artifact(tiny_model("popularity"), tmp_path / "artifact", prepared)
    with pytest.raises(StageError, match="no product with a weight matrix"):
        quantize_body(folder / "body.onnx", tmp_path / "out.onnx")


def test_a_product_that_stays_in_float_is_named(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime.quantization

    monkeypatch.setattr(
        onnxruntime.quantization,
        "quantize_dynamic",
        lambda body, out, **_: out.write_bytes(body.read_bytes()),
    )
    with pytest.raises(StageError, match="products with weights stayed in float"):
        quantize_body(exported / "body.onnx", tmp_path / "out.onnx")
