"""Item vectors in 4 bits as onnxruntime's MatMulNBits reads them: two to a byte, a scale per block."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recommender.quantization_scheme import INT4, Levels

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
Packed = NDArray[np.uint8]

INT4_TABLE, INT4_SCALES = "item_table.int4.npy", "item_table.int4.scales.npy"
INT4_FILES = (INT4_TABLE, INT4_SCALES)
GROUP, SMALLEST_BLOCK = 32, 16
"""Numbers of an item that share a scale; the least that the kernel has blocks of."""


def quantize4(table: Float32, folder: Path, rows_at_once: int = 65_536) -> int:
    """Write a table [rows, D] as uint8 [rows, blocks, block / 2] and its scales [rows, blocks]; the block.

    Round to nearest. A block is 32 numbers of an item, or all of them where D is no more than that.
    """
    rows, width = table.shape
    block = GROUP if width > SMALLEST_BLOCK else SMALLEST_BLOCK
    blocks = -(-width // block)
    packed, scales = np.empty((rows, blocks, block // 2), np.uint8), np.empty((rows, blocks), np.float32)
    for start in range(0, rows, rows_at_once):
        part = slice(start, start + rows_at_once)
        numbers, scales[part] = rounded(np.asarray(table[part]), INT4, block)
        packed[part] = pack(numbers, 4, block)
    np.save(folder / INT4_TABLE, packed)
    np.save(folder / INT4_SCALES, scales)
    return block


def rounded(table: Float32, levels: Levels, block: int | None = None) -> tuple[Int8, Float32]:
    """The nearest whole numbers [rows, D] and the smallest scales [rows, blocks] that clip nothing.

    As `compress.quantization.grid.scales_of`: blocks of zeros have a scale of 1; None: one scale per row.
    """
    rows, width = table.shape
    size = block or width
    parts = np.pad(table, ((0, 0), (0, -width % size))).reshape(rows, -1, size)
    scales = np.maximum(parts.max(2) / np.float32(levels.high), parts.min(2) / np.float32(levels.low))
    scales = np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1)).astype(np.float32)
    numbers = np.clip(np.rint(parts / scales[..., None]), levels.low, levels.high).astype(np.int8)
    return numbers.reshape(rows, -1)[:, :width], scales


def pack(numbers: Int8, bits: int, block: int) -> Packed:
    """Integers [n, in] as MatMulNBits reads them, uint8 [n, blocks, block * bits / 8].

    The middle of the range is 0, the first of two numbers lies in the lower half of a byte, and a short last
    block is filled with zeros.
    """
    rows, width = numbers.shape
    short = -width % block
    raised = (np.pad(numbers, ((0, 0), (0, short))).astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    blocks: Packed = raised.reshape(rows, -1, block)
    if bits == 4:
        blocks = (blocks[..., ::2] | (blocks[..., 1::2] << 4)).astype(np.uint8)
    return blocks
