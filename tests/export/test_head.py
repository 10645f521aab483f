from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.catalogue import BLOCK, padded_rows
from export.four_bits import INT4_SCALES, INT4_TABLE, quantize4, rounded
from export.head import write_head
from export.scans import CANDIDATES4, INT8_TABLE, quantize
from recommender.errors import InputError
from recommender.quantization_scheme import INT4

WIDTH = 16


def stored(folder: Path, vectors: np.ndarray) -> int:
    """Write a table of vectors [n, D] as a catalogue would; the number of items."""
    folder.mkdir(parents=True, exist_ok=True)
    table = np.zeros((padded_rows(len(vectors)), vectors.shape[1]), np.float32)
    table[1 : len(vectors) + 1] = vectors
    np.save(folder / "item_table.npy", table)
    return len(vectors)


class Head:
    """A head with what it reads besides users and seen rows."""

    def __init__(self, path: Path, table: np.ndarray) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options)
        names = [value.name for value in self.session.get_inputs()]
        self.reads = {"table": table} if "table" in names else {}

    def run(self, outputs: object, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, given | self.reads)


def head(folder: Path, kind: str, n_items: int, k: int) -> Head:
    write_head(folder, "head.onnx", kind=kind, n_items=n_items, top_k=k)
    return Head(folder / "head.onnx", np.load(folder / "item_table.npy"))


def expected(vectors: np.ndarray, user: np.ndarray, seen: np.ndarray, k: int) -> np.ndarray:
    scores = np.concatenate((np.full((len(user), 1), -np.inf), user @ vectors.T), axis=1)
    np.put_along_axis(scores, seen, -np.inf, axis=1)
    scores[:, 0] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("kind", ["exact", "int8", "int4"])
@pytest.mark.parametrize("n_items", [60, BLOCK - 1, BLOCK, 5 * BLOCK + 3, 200 * BLOCK])
def test_lists_are_those_of_the_whole_product(tmp_path: Path, kind: str, n_items: int) -> None:
    rng = np.random.default_rng(n_items)
    vectors = rng.normal(size=(n_items, WIDTH)).astype(np.float32)
    session = head(tmp_path, kind, stored(tmp_path, vectors), 10)
    user = rng.normal(size=(7, WIDTH)).astype(np.float32)
    seen = rng.integers(0, n_items + 1, (7, 5))
    rows, scores = session.run(("top_items", "scores"), {"user": user, "seen": seen})
    np.testing.assert_array_equal(rows, expected(vectors, user, seen, 10))
    np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", user, vectors[rows - 1]), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_equal_scores_stand_by_row_although_blocks_are_sorted_by_their_maxima(
    tmp_path_factory: pytest.TempPathFactory, levels: int, seed: int
) -> None:
    """Few different scores: ties within blocks, between blocks, and at the end of the list."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, levels + 1, (60 * BLOCK, 1)).astype(np.float32) / 4
    folder = tmp_path_factory.mktemp("ties")
    session = head(folder, "exact", stored(folder, vectors), 8)
    seen = rng.integers(0, len(vectors) + 1, (1, 3))
    rows, _ = session.run(None, {"user": np.ones((1, 1), np.float32), "seen": seen})
    np.testing.assert_array_equal(rows, expected(vectors, np.ones((1, 1), np.float32), seen, 8))


@pytest.mark.parametrize("kind", ["exact", "int8", "int4"])
def test_rows_that_fill_up_the_last_block_never_come_back(tmp_path: Path, kind: str) -> None:
    n_items = 40 * BLOCK + 1  # the last block has 126 rows of zeros, which score higher than any item
    session = head(tmp_path, kind, stored(tmp_path, -np.ones((n_items, 4), np.float32)), 9)
    rows, _ = session.run(None, {"user": np.ones((2, 4), np.float32), "seen": np.zeros((2, 1), np.int64)})
    assert ((rows >= 1) & (rows <= n_items)).all()


@pytest.mark.parametrize("kind", ["exact", "int8", "int4"])
def test_masked_rows_come_last_with_minus_infinity(tmp_path: Path, kind: str) -> None:
    session = head(tmp_path, kind, stored(tmp_path, np.ones((12, 4), np.float32)), 5)
    seen = np.arange(1, 11)[None]  # two are left
    rows, scores = session.run(None, {"user": np.ones((1, 4), np.float32), "seen": seen})
    assert rows[0, :2].tolist() == [11, 12]
    assert np.isneginf(scores[0, 2:]).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_nobodys_list_depends_on_who_shares_the_batch(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30 * BLOCK, WIDTH)).astype(np.float32)
    session = head(tmp_path, kind, stored(tmp_path, vectors), 10)
    user = rng.normal(size=(8, WIDTH)).astype(np.float32) * np.array(
        [[10.0**power] for power in range(-4, 4)]
    )
    user = user.astype(np.float32)  # one scale for all would leave nothing of the small ones
    nothing = np.zeros((8, 1), np.int64)
    together, _ = session.run(None, {"user": user, "seen": nothing})
    alone = [session.run(None, {"user": user[i : i + 1], "seen": nothing[:1]})[0][0] for i in range(8)]
    np.testing.assert_array_equal(together, np.stack(alone))
    np.testing.assert_array_equal(together, expected(vectors, user, nothing, 10))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_user_vector_of_zeros_gets_the_first_rows(tmp_path: Path, kind: str) -> None:
    session = head(tmp_path, kind, stored(tmp_path, np.ones((CANDIDATES4 * 2, 4), np.float32)), 3)
    rows, scores = session.run(
        None, {"user": np.zeros((1, 4), np.float32), "seen": np.zeros((1, 1), np.int64)}
    )
    assert rows.tolist() == [[1, 2, 3]] and not scores.any()


def test_quantized_rows_are_within_half_a_step(tmp_path: Path) -> None:
    table = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    table[7] = 0
    scales = quantize(table, tmp_path / INT8_TABLE, rows_at_once=64)
    found = np.load(tmp_path / INT8_TABLE).T * scales[:, None]
    assert (np.abs(found - table) <= scales[:, None] / 2 + 1e-7).all()
    assert np.abs(np.load(tmp_path / INT8_TABLE)).max() == 127


@pytest.mark.parametrize("width", [1, 16, 17, 48, 64, 100])
def test_a_4_bit_scan_is_the_product_with_its_rounded_rows(tmp_path: Path, width: int) -> None:
    """Of users whose numbers 8 bits hold as they are, so that nothing is rounded but the table."""
    rng = np.random.default_rng(width)
    vectors = rng.normal(size=(3 * CANDIDATES4, width)).astype(np.float32)
    n_items = stored(tmp_path, vectors)
    write_head(tmp_path, "head.onnx", kind="int4", n_items=n_items, top_k=5)
    model = onnx.load(tmp_path / "head.onnx")
    (scan,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    rough_scores = onnx.helper.make_tensor_value_info(scan.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(rough_scores)
    onnx.save(model, tmp_path / "open.onnx")
    user = rng.integers(-126, 127, (3, width)).astype(np.float32)
    user[:, ::16] = 127  # the largest of every block
    opened = Head(tmp_path / "open.onnx", np.load(tmp_path / "item_table.npy"))
    *_, rough = opened.run(None, {"user": user, "seen": np.zeros((3, 1), np.int64)})
    table = np.load(tmp_path / "item_table.npy")
    numbers, scales = rounded(table, INT4, 32 if width > 16 else 16)
    steps = np.repeat(scales, 32 if width > 16 else 16, axis=1)[:, :width]
    np.testing.assert_allclose(rough, user @ (numbers * steps).T, rtol=1e-4, atol=1e-3)


def test_4_bit_numbers_are_within_half_a_step_and_use_all_levels(tmp_path: Path) -> None:
    table = np.random.default_rng(1).normal(size=(300, 40)).astype(np.float32)
    table[7] = 0
    assert quantize4(table, tmp_path, rows_at_once=64) == 32
    packed, scales = np.load(tmp_path / INT4_TABLE), np.load(tmp_path / INT4_SCALES)
    assert packed.shape == (300, 2, 16) and packed.nbytes == 300 * 64 / 2 and scales.shape == (300, 2)
    numbers = np.stack((packed & 15, packed >> 4), axis=3).reshape(300, 64)[:, :40].astype(int) - 8
    assert (numbers.min(), numbers.max()) == (-8, 7) and not numbers[7].any()
    steps = np.repeat(scales, 32, axis=1)[:, :40]
    assert (np.abs(numbers * steps - table) <= steps / 2 + 1e-6).all()


def test_a_table_of_other_size_and_a_list_that_is_too_long_are_refused(tmp_path: Path) -> None:
    n_items = stored(tmp_path, np.ones((10, 4), np.float32))
    with pytest.raises(InputError, match="no table of 4000 items"):
        write_head(tmp_path, "head.onnx", kind="exact", n_items=4000, top_k=5)
    with pytest.raises(InputError, match="top_k is 11"):
        write_head(tmp_path, "head.onnx", kind="exact", n_items=n_items, top_k=11)
