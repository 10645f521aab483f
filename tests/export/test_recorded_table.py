"""Item tables in few bits: the recorded numbers, to the bit, in files, in rows of float32 and in a head."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from compress.quantization.grid import on_grid, scales_of
from export.catalogue import padded_rows
from export.four_bits import rounded
from export.head import write_head
from export.recorded_table import (
    RECORDED_SCALES,
    RECORDED_TABLE,
    block_of,
    prove_recorded,
    record,
    record_again,
)
from export.runtime import ArtifactError, FewBits
from recommender.errors import GateError, InputError, StageError
from recommender.quantization_scheme import (
    ITEM_TABLE,
    TABLE_LEVELS,
    Quantization,
    QuantizationScheme,
    TableBits,
)

BITS: tuple[TableBits, ...] = ("int8", "int4")


def on_a_grid(bits: TableBits, n_items: int, width: int) -> tuple[np.ndarray, Quantization]:
    """A table [n_items + 1, width] as the stage quantize leaves it."""
    values = torch.randn(n_items + 1, width, generator=torch.Generator().manual_seed(width))
    values[0] = 0
    scales = scales_of(values, TABLE_LEVELS[bits])
    table = on_grid(values, scales, TABLE_LEVELS[bits]).numpy()
    return table, Quantization(QuantizationScheme(matrices={}, item_table=bits), {ITEM_TABLE: scales.numpy()})


def opened(folder: Path, width: int, rows: int | None = None) -> FewBits:
    return FewBits(folder / RECORDED_TABLE, folder / RECORDED_SCALES, width, rows)


@pytest.mark.parametrize("width", [1, 16, 17, 64, 300])
@pytest.mark.parametrize("bits", BITS)
def test_rows_are_those_of_the_model_to_the_bit(tmp_path: Path, bits: TableBits, width: int) -> None:
    table, quantization = on_a_grid(bits, 200, width)
    record(tmp_path, table, quantization)
    found = opened(tmp_path, width, 201)
    assert found.shape == (201, width) and len(found) == 201
    assert np.array_equal(np.asarray(found), table) and found[1:].dtype == np.float32
    rows = np.array([[0, 7, 200], [3, 3, 0]])
    assert np.array_equal(found[rows], table[rows])
    whole = opened(tmp_path, width)
    assert len(whole) == padded_rows(200) and not np.asarray(whole)[201:].any()


@pytest.mark.parametrize(("bits", "bytes_"), [("int8", 64), ("int4", 32)])
def test_four_bits_are_two_to_a_byte(tmp_path: Path, bits: TableBits, bytes_: int) -> None:
    record(tmp_path, *on_a_grid(bits, 1000, 64))
    assert np.load(tmp_path / RECORDED_TABLE).nbytes == padded_rows(1000) * bytes_
    assert np.load(tmp_path / RECORDED_SCALES).nbytes == padded_rows(1000) * 4


def test_the_block_of_a_width_wastes_least() -> None:
    assert [block_of(width) for width in (8, 16, 32, 48, 64, 128, 256)] == [16, 16, 32, 64, 64, 128, 256]


@pytest.mark.parametrize("width", [5, 64, 300])
@pytest.mark.parametrize("bits", BITS)
def test_a_head_scores_with_the_vectors_that_the_numbers_stand_for(
    tmp_path: Path, bits: TableBits, width: int
) -> None:
    table, quantization = on_a_grid(bits, 2000, width)
    record(tmp_path, table, quantization)
    files = write_head(tmp_path, "head.onnx", kind="recorded", n_items=2000, top_k=10, width=width)
    assert files == ("head.onnx", RECORDED_TABLE, RECORDED_SCALES)  # no float32 table
    user = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    seen = np.array([[1, 2, 3]] * 5)
    rows, scores = onnxruntime.InferenceSession(str(tmp_path / "head.onnx")).run(
        ("top_items", "scores"), {"user": user, "seen": seen}
    )
    exact = user @ table.T
    exact[:, :4] = -np.inf
    assert np.array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_a_new_version_keeps_what_stays_and_rounds_what_is_new(tmp_path: Path, bits: TableBits) -> None:
    table, quantization = on_a_grid(bits, 50, 8)
    quantization.scales[ITEM_TABLE][3] *= 2  # type: ignore[index]
    table[3] = rounded(table[3:4], TABLE_LEVELS[bits])[0] * quantization.scales[ITEM_TABLE][3]
    for name in ("old", "new"):  # row 3 has a scale that nearest rounding would not choose
        (tmp_path / name).mkdir()
    record(tmp_path / "old", table, quantization)
    old, old_rows = opened(tmp_path / "old", 8), np.r_[3, 1, 0, 2]
    vectors = np.zeros((padded_rows(4), 8), np.float32)
    vectors[1:5] = table[[3, 1, 9, 2]]
    vectors[3] += 0.01  # a new item
    vectors[4] += 0.5  # one that was there and has changed
    np.save(tmp_path / "new" / "item_table.npy", vectors)
    record_again(tmp_path / "new", bits, old, old_rows)
    found = opened(tmp_path / "new", 8, 5)
    assert np.array_equal(found[1:3], table[[3, 1]])
    assert found.scales(slice(1, 2))[0, 0] == quantization.scales[ITEM_TABLE][3, 0]
    assert (np.abs(found[3:5] - vectors[3:5]) <= 0.501 * found.scales(slice(3, 5))).all()
    prove_recorded(tmp_path / "new", 4)
    vectors[2] += 1
    np.save(tmp_path / "new" / "item_table.npy", vectors)
    with pytest.raises(GateError, match="row 2 is not its vector"):
        prove_recorded(tmp_path / "new", 4)


def test_a_table_that_has_left_its_grid_is_not_recorded(tmp_path: Path) -> None:
    table, quantization = on_a_grid("int8", 20, 8)
    table[4] *= 1.01
    with pytest.raises(StageError, match="item_table does not lie on the grid"):
        record(tmp_path, table, quantization)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    record(tmp_path, *on_a_grid("int4", 20, 8))
    for width, rows in ((40, None), (8, 10_000)):
        with pytest.raises(ArtifactError, match="do not fit each other"):
            opened(tmp_path, width, rows)
    with pytest.raises(InputError, match="is no table of"):
        write_head(tmp_path, "head.onnx", kind="recorded", n_items=4000, top_k=5, width=8)
    np.save(tmp_path / RECORDED_TABLE, np.zeros((128, 8), np.float32))
    with pytest.raises(ArtifactError, match="do not fit each other"):
        opened(tmp_path, 8)
