"""The item table of a quantized checkpoint as its scheme holds it: whole numbers, and a scale per item.

    item_table.recorded.npy         int8 [rows, D]; of 4 bits two to a byte, uint8 [rows, blocks, block / 2]
    item_table.recorded.scales.npy  float32 [rows, blocks]: the scale of the item, once for each block

Beside the other arrays of a catalogue, rows as in `item_table.npy`. The variant `quantized` reads nothing
else: the runtime turns rows into float32 vectors (`export.runtime.FewBits`), the head scans the numbers.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.catalogue import ROWS_AT_ONCE, padded_rows
from export.four_bits import Float32, Int8, pack, rounded
from export.runtime import FewBits
from recommender.errors import GateError
from recommender.quantization_scheme import ITEM_TABLE, TABLE_LEVELS, Quantization, TableBits, whole_numbers

RECORDED_TABLE, RECORDED_SCALES = "item_table.recorded.npy", "item_table.recorded.scales.npy"
RECORDED_FILES = (RECORDED_TABLE, RECORDED_SCALES)
BLOCKS = (256, 128, 64, 32, 16)
"""That MatMulNBits has kernels for."""

Int64 = NDArray[np.int64]


def table_entry(folder: str, bits: TableBits) -> dict[str, Any]:
    """What the manifest says of a variant's own table in this folder of a catalogue."""
    return {"bits": bits, "numbers": f"{folder}/{RECORDED_TABLE}", "scales": f"{folder}/{RECORDED_SCALES}"}


def record(folder: Path, table: Float32, quantization: Quantization) -> None:
    """Write the recorded numbers of a table [n_items + 1, D]; StageError where it has left its grid."""
    bits, scales = quantization.scheme.item_table, quantization.scales[ITEM_TABLE]
    numbers = whole_numbers(table, scales, TABLE_LEVELS[bits], None, ITEM_TABLE)
    _write(folder, numbers[1:], scales[1:, 0], bits)


def record_again(folder: Path, bits: TableBits, old: FewBits, old_rows: Int64) -> None:
    """Write the numbers of the `item_table.npy` of a new version.

    old_rows [n_items]: the row that each item has in `old`, 0 for new ones. Whoever stands there with exactly
    this vector keeps numbers and scale; others are rounded to nearest, with a scale of their own.
    """
    table = np.load(folder / "item_table.npy", mmap_mode="r")
    count = len(old_rows)
    numbers, scales = np.empty((count, table.shape[1]), np.int8), np.empty(count, np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        part = slice(start, min(start + ROWS_AT_ONCE, count))
        vectors = np.asarray(table[part.start + 1 : part.stop + 1])
        fresh, steps = rounded(vectors, TABLE_LEVELS[bits])
        same = (old_rows[part] > 0) & (old[old_rows[part]] == vectors).all(axis=1)
        numbers[part] = np.where(same[:, None], old.numbers(old_rows[part]), fresh)
        scales[part] = np.where(same, old.scales(old_rows[part])[:, 0], steps[:, 0])
    _write(folder, numbers, scales, bits)


def prove_recorded(folder: Path, n_items: int) -> None:
    """Raise GateError unless every row is its vector in `item_table.npy`, to half a step of its scale."""
    table = np.load(folder / "item_table.npy", mmap_mode="r")
    stored = FewBits(folder / RECORDED_TABLE, folder / RECORDED_SCALES, table.shape[1])
    for start in range(0, n_items + 1, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, n_items + 1))
        vectors, steps = np.asarray(table[rows]), stored.scales(rows)
        off = np.abs(stored[rows] - vectors) > 0.5 * steps + 1e-6 * np.abs(vectors)
        if off.any():
            row = start + int(np.flatnonzero(off.any(axis=1))[0])
            raise GateError(f"row {row} is not its vector, rounded", where=str(folder / RECORDED_TABLE))


def _write(folder: Path, numbers: Int8, scales: Float32, bits: TableBits) -> None:
    """Rows 1.. of a table; row 0 and those that fill up the last block become zeros."""
    count, width = numbers.shape
    rows = padded_rows(count)
    padding = (1, rows - count - 1)
    whole, steps = np.pad(numbers, (padding, (0, 0))), np.pad(scales, padding, constant_values=1)
    if bits == "int4":
        block = block_of(width)
        np.save(folder / RECORDED_TABLE, pack(whole, 4, block))
        np.save(folder / RECORDED_SCALES, np.repeat(steps[:, None], -(-width // block), axis=1))
    else:
        np.save(folder / RECORDED_TABLE, whole)
        np.save(folder / RECORDED_SCALES, steps[:, None])


def block_of(width: int) -> int:
    """The block in which 4-bit rows of this width, with a scale for each block, take the fewest bytes."""
    return min(BLOCKS, key=lambda block: -(-width // block) * (block // 2 + 4))
