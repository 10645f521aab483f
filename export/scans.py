"""Scores of all items, exact or rough, and how the vectors of some are had to score these again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.catalogue import padded_rows
from export.four_bits import INT4_FILES, INT4_SCALES, INT4_TABLE, quantize4
from export.head_graph import HeadGraph, offset_of
from export.recorded_table import RECORDED_FILES, RECORDED_SCALES, RECORDED_TABLE
from export.variants import HeadKind
from recommender.errors import InputError

TABLE, INT8_TABLE = "item_table.npy", "item_table.int8.npy"
CANDIDATES = 50
"""Rows that the 8-bit scan hands over to be scored exactly, at least."""
CANDIDATES4, LARGE = 100, 200_000
"""The same of the 4-bit scan; from so many items on twice as many."""
CONTRIB = "com.microsoft"

Float32 = NDArray[np.float32]


class Scan(NamedTuple):
    """What a head ranks by."""

    scores: str  # [batch, rows]
    width: int  # numbers of a vector
    files: tuple[str, ...]
    candidates: int = 0  # of the best that are scored again, at least; 0: the scores are exact
    vectors: Callable[[str], str] = str  # rows [batch, n] -> their vectors [batch, n, D] (names of results)


def scan(graph: HeadGraph, folder: Path, kind: HeadKind, n_items: int, width: int | None) -> Scan:
    """Add the scores of all rows of a table in `folder` to a graph.

    `width`: of vectors, for `recorded`. Raises InputError where the table is not one of so many items.
    """
    if kind == "recorded":
        assert width is not None
        return _recorded(graph, folder, padded_rows(n_items), width)
    table: Float32 = np.load(folder / TABLE, mmap_mode="r")
    if table.dtype != np.float32 or len(table) != padded_rows(n_items):
        raise InputError(
            f"{table.dtype} {table.shape} is no table of {n_items} items in whole blocks",
            where=str(folder / TABLE),
        )
    if kind == "exact":
        stored = graph.beside("table", TABLE, TensorProto.FLOAT, table.shape, offset_of(folder / TABLE))
        return Scan(graph.node("Gemm", ["user", stored], transB=1), table.shape[1], (TABLE,))
    few = _scan8(graph, folder, table) if kind == "int8" else _scan4(graph, folder, table)
    return few._replace(vectors=lambda rows: graph.node("Gather", ["table", rows]))


def quantize(table: Float32, path: Path, rows_at_once: int = 65_536) -> Float32:
    """Write the table as int8 [D, rows] (transposed) to `path`; returns the scale of each row.

    Symmetric, one scale per item: the largest of its values becomes 127.
    """
    rows, width = table.shape
    stored = np.empty((width, rows), np.int8)  # in memory: a full disk ends whoever fills in a mapped file
    scales = np.empty(rows, np.float32)
    for start in range(0, rows, rows_at_once):
        part = np.asarray(table[start : start + rows_at_once])
        scale = np.abs(part).max(axis=1) / np.float32(127)
        scales[start : start + rows_at_once] = scale
        steps = part / np.where(scale == 0, np.float32(1), scale)[:, None]
        stored[:, start : start + rows_at_once] = np.rint(steps).astype(np.int8).T
    np.save(path, stored)
    return scales


def _scan8(graph: HeadGraph, folder: Path, table: Float32) -> Scan:
    """From 8-bit integers, each user's in units of the user's own scale."""
    graph.constant("scales", quantize(table, folder / INT8_TABLE), np.float32)
    place = offset_of(folder / INT8_TABLE)
    stored = graph.beside("table_int8", INT8_TABLE, TensorProto.INT8, table.shape[::-1], place)
    given = [_in_7_bits(graph), stored, "unit", "scales", "zero_point"]
    scores = graph.node("MatMulIntegerToFloat", given, domain=CONTRIB)
    return Scan(scores, table.shape[1], (TABLE, INT8_TABLE), CANDIDATES)


def _in_7_bits(graph: HeadGraph) -> str:
    """The users as whole numbers around `zero_point`, in units of their own scales (named: `unit`)."""
    largest = graph.node("ReduceMax", [graph.node("Abs", ["user"]), graph.constant("one", [1])], keepdims=1)
    step = graph.node("Div", [largest, graph.constant("steps", 63, np.float32)])
    step = graph.node("Max", [step, graph.constant("tiny", 1e-30, np.float32)])  # a vector of zeros
    whole = graph.node("Round", [graph.node("Div", ["user", step])])
    shifted = graph.node("Add", [whole, graph.constant("shift", 64, np.float32)])
    graph.constant("unit", 1, np.float32)
    graph.constant("zero_point", 64, np.uint8)
    return graph.node("Cast", [shifted], to=TensorProto.UINT8)


def _scan4(graph: HeadGraph, folder: Path, table: Float32) -> Scan:
    """From 4-bit integers in groups."""
    block = quantize4(table, folder)
    rows, width = table.shape
    packed = (rows, -(-width // block), block // 2)
    place = offset_of(folder / INT4_TABLE)
    stored = graph.beside("table_int4", INT4_TABLE, TensorProto.UINT8, packed, place)
    place = offset_of(folder / INT4_SCALES)
    graph.beside("scales", INT4_SCALES, TensorProto.FLOAT, (rows * packed[1],), place)
    return Scan(_four_bits(graph, stored, packed, width), width, (TABLE, *INT4_FILES), _candidates4(rows))


def _candidates4(rows: int) -> int:
    return CANDIDATES4 if rows < LARGE else 2 * CANDIDATES4


def _four_bits(graph: HeadGraph, stored: str, packed: tuple[int, ...], width: int) -> str:
    """The kernel rounds each user's numbers to 8 bits, block by block (accuracy level 4: at any other it
    turns the whole table into float32 for every batch)."""
    rows, _, half = packed
    sizes: dict[str, Any] = {"K": width, "N": rows, "bits": 4, "block_size": 2 * half, "accuracy_level": 4}
    return graph.node("MatMulNBits", ["user", stored, "scales"], domain=CONTRIB, **sizes)


def _recorded(graph: HeadGraph, folder: Path, rows: int, width: int) -> Scan:
    """From the numbers that a checkpoint records, of which the vectors of candidates are made, too."""
    table = np.load(folder / RECORDED_TABLE, mmap_mode="r")
    shape, four = table.shape, table.dtype == np.uint8
    if len(table) != rows or not (four or shape[1:] == (width,)):
        raise InputError(f"{shape} is no table of {rows} rows of {width}", where=str(folder / RECORDED_TABLE))
    kind, blocks = (TensorProto.UINT8, shape[1]) if four else (TensorProto.INT8, 1)
    stored = graph.beside("numbers", RECORDED_TABLE, kind, shape, offset_of(folder / RECORDED_TABLE))
    place = offset_of(folder / RECORDED_SCALES)
    graph.beside("scales", RECORDED_SCALES, TensorProto.FLOAT, (rows * blocks,), place)
    if four:
        scores, candidates = _four_bits(graph, stored, shape, width), _candidates4(rows)
    else:
        zero = numpy_helper.from_array(np.zeros(1, np.int8))  # one for each scale, as the kernel wants them
        shifts = graph.node("ConstantOfShape", [graph.constant("rows", [rows])], value=zero)
        given = [_in_7_bits(graph), "unit", "zero_point", stored, "scales", shifts]
        scores, candidates = graph.node("QGemm", given, domain=CONTRIB, transB=1), CANDIDATES

    def vectors(chosen: str) -> str:
        numbers = graph.node("Gather", [stored, chosen])
        if four:
            numbers = _unpacked(graph, numbers, shape, width)
        first = graph.node("Mul", [chosen, graph.constant("blocks", blocks)]) if blocks > 1 else chosen
        steps = graph.node("Unsqueeze", [graph.node("Gather", ["scales", first]), "column"])
        return graph.node("Mul", [graph.node("Cast", [numbers], to=TensorProto.FLOAT), steps])

    return Scan(scores, width, RECORDED_FILES, candidates, vectors)


def _unpacked(graph: HeadGraph, bytes_: str, packed: tuple[int, ...], width: int) -> str:
    """uint8 [batch, n, blocks, half] -> the numbers in it, int32 [batch, n, D]."""
    axis = graph.constant("pair", [4])
    low = graph.node("BitwiseAnd", [bytes_, graph.constant("fifteen", 15, np.uint8)])
    high = graph.node("BitShift", [bytes_, graph.constant("four", 4, np.uint8)], direction="RIGHT")
    halves = [graph.node("Unsqueeze", [half, axis]) for half in (low, high)]
    flat = graph.constant("joined", [0, 0, 2 * packed[1] * packed[2]])
    joined = graph.node("Reshape", [graph.node("Concat", halves, axis=4), flat])
    ends = [graph.constant(name, [value]) for name, value in (("start", 0), ("width", width), ("last", 2))]
    cut = graph.node("Slice", [joined, *ends])
    whole = graph.node("Cast", [cut], to=TensorProto.INT32)
    return graph.node("Sub", [whole, graph.constant("eight", 8, np.int32)])
