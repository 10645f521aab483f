"""The head: user vectors against the item table, seen rows masked, the k best; written node by node.

    user float32 [batch, D], seen int64 [batch, seen] -> top_items int64 [batch, k], scores float32 [batch, k]

It holds no weights of its own: the table is read from the `item_table.npy` beside it, so a head is made anew
for every version of the catalogue, in an instant. Opset 23; `int8` and `int4` have one operator of
onnxruntime's own.

- `exact` multiplies with the whole table. The k best are found by block maxima: an item among the k best lies
  in one of the k blocks with the largest maxima, so only these blocks are sorted.
- `int8` scans a table of 8-bit integers (a scale per item; users in 7 bits with a scale of their own, so that
  nobody's list depends on who shares the batch, and no sum of two products overflows the 16 bits that kernels
  without VNNI add them in) and scores its best `CANDIDATES` again with the float32 vectors. The scores are
  exact; an item can be missed where its 8-bit score is not among the best. The float32 table [rows, D] is an
  input `table`: handed in as it is mapped from the disk, it takes no memory but for the rows that are read.
- `int4` scans half the bytes: a scale per 32 numbers of an item, and for users one for each such group, again
  of their own. Of its best, more are scored again. In batches its kernel is slower than a plain product.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.catalogue import BLOCK, padded_rows
from export.contract import OPSET
from export.four_bits import INT4_FILES, INT4_SCALES, INT4_TABLE, quantize4
from export.graph import check_top_k
from export.variants import HeadKind
from recommender.errors import InputError

IR_VERSION = 11
INT8_TABLE = "item_table.int8.npy"
CANDIDATES = 50
"""Rows that the 8-bit scan hands over to be scored exactly, at least."""
CANDIDATES4, LARGE = 100, 200_000
"""The same of the 4-bit scan; from so many items on twice as many."""

Float32 = NDArray[np.float32]


class _Graph:
    """Nodes and initializers in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        names = list(outputs) or [f"{op.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def constant(self, name: str, values: object, dtype: object = np.int64) -> str:
        """Add a small initializer; its name."""
        array = np.array(values, dtype=dtype, order="C")  # type: ignore[call-overload]
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def beside(self, name: str, file: str, kind: int, shape: Sequence[int], offset: int) -> str:
        """Add an initializer whose values lie in a file beside the graph; its name."""
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        width = 1 if kind in (TensorProto.INT8, TensorProto.UINT8) else 4
        length = int(np.prod(shape)) * width
        for key, value in (("location", file), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name


def write_head(folder: Path, name: str, *, kind: HeadKind, n_items: int, top_k: int) -> tuple[str, ...]:
    """Write `name` into a folder that holds `item_table.npy`; the files that it needs, the graph first.

    The table is float32 [padded_rows(n_items), D]. `int8` writes `item_table.int8.npy` beside it, `int4`
    `item_table.int4.npy` and its scales. Raises InputError when top_k does not fit the catalogue.
    """
    check_top_k(top_k, n_items)
    table: Float32 = np.load(folder / "item_table.npy", mmap_mode="r")
    offset = _offset(folder / "item_table.npy")
    if table.dtype != np.float32 or len(table) != padded_rows(n_items):
        raise InputError(
            f"{table.dtype} {table.shape} is no table of {n_items} items in whole blocks",
            where=str(folder / "item_table.npy"),
        )
    graph = _Graph()
    if kind == "exact":
        exact = graph.beside("table", "item_table.npy", TensorProto.FLOAT, table.shape, offset)
        scores, wanted = graph.node("Gemm", ["user", exact], transB=1), top_k
        files: tuple[str, ...] = ()
    elif kind == "int8":
        scales = quantize(table, folder / INT8_TABLE)
        scores = _scan(graph, scales, table.shape, _offset(folder / INT8_TABLE))
        wanted, files = min(max(CANDIDATES, 2 * top_k), n_items), (INT8_TABLE,)
    else:
        block = quantize4(table, folder)
        scores = _scan4(graph, folder, table.shape, block)
        least = CANDIDATES4 if n_items < LARGE else 2 * CANDIDATES4
        wanted, files = min(max(least, 2 * top_k), n_items), INT4_FILES
    masked = _mask(graph, scores, n_items, len(table))
    rows, best = _best(graph, masked, wanted, len(table) // BLOCK)
    if kind != "exact":
        rows, best = _score_again(graph, rows, best, top_k)
    graph.node("Identity", [rows], ["top_items"])
    graph.node("Identity", [best], ["scores"])
    _save(graph, folder / name, table.shape, top_k)
    return (name, "item_table.npy", *files)


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


def _offset(path: Path) -> int:
    """Where the values begin in a .npy file."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        read[version](file)
        return file.tell()


def _scan(graph: _Graph, scales: Float32, shape: tuple[int, ...], offset: int) -> str:
    """Scores [batch, rows] from 8-bit integers, each user's in units of the user's own scale."""
    table = graph.beside("table_int8", INT8_TABLE, TensorProto.INT8, shape[::-1], offset)
    largest = graph.node("ReduceMax", [graph.node("Abs", ["user"]), graph.constant("one", [1])], keepdims=1)
    step = graph.node("Div", [largest, graph.constant("steps", 63, np.float32)])
    step = graph.node("Max", [step, graph.constant("tiny", 1e-30, np.float32)])  # a vector of zeros
    whole = graph.node("Round", [graph.node("Div", ["user", step])])
    shifted = graph.node("Add", [whole, graph.constant("shift", 64, np.float32)])
    user = graph.node("Cast", [shifted], to=TensorProto.UINT8)
    graph.constant("scales", scales, np.float32)
    graph.constant("unit", 1, np.float32)
    graph.constant("zero_point", 64, np.uint8)
    given = [user, table, "unit", "scales", "zero_point"]
    return graph.node("MatMulIntegerToFloat", given, domain="com.microsoft")


def _scan4(graph: _Graph, folder: Path, shape: tuple[int, ...], block: int) -> str:
    """Scores [batch, rows] from 4-bit integers; the kernel rounds each user's numbers to 8 bits, block by
    block (accuracy level 4: at any other it turns the whole table into float32 for every batch)."""
    rows, width = shape
    blocks = -(-width // block)
    packed = (rows, blocks, block // 2)
    table = graph.beside("table_int4", INT4_TABLE, TensorProto.UINT8, packed, _offset(folder / INT4_TABLE))
    place = _offset(folder / INT4_SCALES)
    scales = graph.beside("scales", INT4_SCALES, TensorProto.FLOAT, (rows * blocks,), place)
    sizes = {"K": width, "N": rows, "bits": 4, "block_size": block, "accuracy_level": 4}
    return graph.node("MatMulNBits", ["user", table, scales], domain="com.microsoft", **sizes)


def _mask(graph: _Graph, scores: str, n_items: int, rows: int) -> str:
    """Scores with -inf for row 0, the rows that fill up the last block, and those in `seen`."""
    never = graph.constant("never", [[0, *range(n_items + 1, rows)]])
    users = graph.node("Shape", ["seen"], start=0, end=1)
    shape = graph.node("Concat", [users, graph.constant("unit_axis", [1])], axis=0)
    blocked = graph.node("Concat", [graph.node("Expand", [never, shape]), "seen"], axis=1)
    nothing = numpy_helper.from_array(np.array([-np.inf], np.float32))
    values = graph.node("ConstantOfShape", [graph.node("Shape", [blocked])], value=nothing)
    return graph.node("ScatterElements", [scores, blocked, values], axis=1)


def _best(graph: _Graph, scores: str, wanted: int, blocks: int) -> tuple[str, str]:
    """(rows, scores) [batch, wanted], best first, equal scores by ascending row."""
    count = graph.constant("wanted", [wanted])
    if blocks < 4 * wanted:
        graph.node("TopK", [scores, count], ["best_scores", "best_rows"], axis=1)
        return "best_rows", "best_scores"
    last = graph.constant("last_axis", [2])
    parted = graph.node("Reshape", [scores, graph.constant("parted", [0, blocks, BLOCK])])
    maxima = graph.node("ReduceMax", [parted, last], keepdims=0)
    graph.node("TopK", [maxima, count], ["block_maxima", "blocks_by_maximum"], axis=1)
    # in ascending order, so that equal scores keep standing by row
    graph.node("TopK", ["blocks_by_maximum", count], ["blocks", "order"], axis=1, largest=0)
    inside = graph.node("GatherND", [parted, graph.node("Unsqueeze", ["blocks", last])], batch_dims=1)
    flat = graph.node("Reshape", [inside, graph.constant("flat", [0, wanted * BLOCK])])
    graph.node("TopK", [flat, count], ["best_scores", "places"], axis=1)
    size = graph.constant("block_size", BLOCK)
    block = graph.node("GatherElements", ["blocks", graph.node("Div", ["places", size])], axis=1)
    rows = graph.node("Add", [graph.node("Mul", [block, size]), graph.node("Mod", ["places", size])])
    return rows, "best_scores"


def _score_again(graph: _Graph, rows: str, rough: str, k: int) -> tuple[str, str]:
    """(rows, float32 scores) [batch, k] of the best among given rows [batch, n]."""
    graph.node("TopK", [rows, "wanted"], ["candidates", "by_row"], axis=1, largest=0)
    rough = graph.node("GatherElements", [rough, "by_row"], axis=1)
    axis = graph.constant("column", [2])
    column = graph.node("Unsqueeze", ["user", axis])
    exact = graph.node("MatMul", [graph.node("Gather", ["table", "candidates"]), column])
    exact = graph.node("Squeeze", [exact, axis])
    masked = graph.node("Where", [graph.node("IsInf", [rough]), rough, exact])
    graph.node("TopK", [masked, graph.constant("k", [k])], ["exact_scores", "exact_places"], axis=1)
    return graph.node("GatherElements", ["candidates", "exact_places"], axis=1), "exact_scores"


def _save(graph: _Graph, path: Path, shape: tuple[int, ...], k: int) -> None:
    """Write the graph and check it; a table that it holds no copy of becomes an input."""

    def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    given = [
        value("user", TensorProto.FLOAT, "batch", shape[1]),
        value("seen", TensorProto.INT64, "batch", "seen"),
    ]
    if "table" not in [entry.name for entry in graph.initializers]:
        given.append(value("table", TensorProto.FLOAT, *shape))
    made = helper.make_graph(
        graph.nodes,
        "head",
        given,
        [value("top_items", TensorProto.INT64, "batch", k), value("scores", TensorProto.FLOAT, "batch", k)],
        graph.initializers,
    )
    domains = {"": OPSET, "com.microsoft": 1}
    used = {node.domain for node in graph.nodes}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items() if domain in used]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="recpress")
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
