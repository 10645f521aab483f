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
- `recorded` scans the very numbers of a quantized item table, in 8 or 4 bits, and scores the best again with
  the vectors that these numbers stand for: the model's own, so there is no float32 table.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.catalogue import BLOCK, padded_rows
from export.contract import OPSET
from export.graph import check_top_k
from export.head_graph import HeadGraph
from export.scans import scan
from export.variants import HeadKind

IR_VERSION = 11


def write_head(
    folder: Path, name: str, *, kind: HeadKind, n_items: int, top_k: int, width: int | None = None
) -> tuple[str, ...]:
    """Write `name` into the folder of a catalogue; the files that it needs, the graph first.

    `item_table.npy` there is float32 [padded_rows(n_items), D]. `int8` writes `item_table.int8.npy` beside
    it, `int4` `item_table.int4.npy` and its scales; `recorded` reads the files of `export.recorded_table`
    alone, with vectors of `width` numbers. Raises InputError when top_k does not fit the catalogue.
    """
    check_top_k(top_k, n_items)
    graph, rows_in_all = HeadGraph(), padded_rows(n_items)
    found = scan(graph, folder, kind, n_items, width)
    wanted = min(max(found.candidates, 2 * top_k), n_items) if found.candidates else top_k
    masked = _mask(graph, found.scores, n_items, rows_in_all)
    rows, best = _best(graph, masked, wanted, rows_in_all // BLOCK)
    if found.candidates:
        rows, best = _score_again(graph, rows, best, top_k, found.vectors)
    graph.node("Identity", [rows], ["top_items"])
    graph.node("Identity", [best], ["scores"])
    _save(graph, folder / name, (rows_in_all, found.width), top_k)
    return (name, *found.files)


def _mask(graph: HeadGraph, scores: str, n_items: int, rows: int) -> str:
    """Scores with -inf for row 0, the rows that fill up the last block, and those in `seen`."""
    never = graph.constant("never", [[0, *range(n_items + 1, rows)]])
    users = graph.node("Shape", ["seen"], start=0, end=1)
    shape = graph.node("Concat", [users, graph.constant("unit_axis", [1])], axis=0)
    blocked = graph.node("Concat", [graph.node("Expand", [never, shape]), "seen"], axis=1)
    nothing = numpy_helper.from_array(np.array([-np.inf], np.float32))
    values = graph.node("ConstantOfShape", [graph.node("Shape", [blocked])], value=nothing)
    return graph.node("ScatterElements", [scores, blocked, values], axis=1)


def _best(graph: HeadGraph, scores: str, wanted: int, blocks: int) -> tuple[str, str]:
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


def _score_again(
    graph: HeadGraph, rows: str, rough: str, k: int, vectors: Callable[[str], str]
) -> tuple[str, str]:
    """(rows, float32 scores) [batch, k] of the best among given rows [batch, n], whose vectors are had so."""
    graph.node("TopK", [rows, "wanted"], ["candidates", "by_row"], axis=1, largest=0)
    rough = graph.node("GatherElements", [rough, "by_row"], axis=1)
    axis = graph.constant("column", [2])
    column = graph.node("Unsqueeze", ["user", axis])
    exact = graph.node("MatMul", [vectors("candidates"), column])
    exact = graph.node("Squeeze", [exact, axis])
    masked = graph.node("Where", [graph.node("IsInf", [rough]), rough, exact])
    graph.node("TopK", [masked, graph.constant("k", [k])], ["exact_scores", "exact_places"], axis=1)
    return graph.node("GatherElements", ["candidates", "exact_places"], axis=1), "exact_scores"


def _save(graph: HeadGraph, path: Path, shape: tuple[int, ...], k: int) -> None:
    """Write the graph and check it; a table that it reads and holds no copy of becomes an input."""

    def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    given = [
        value("user", TensorProto.FLOAT, "batch", shape[1]),
        value("seen", TensorProto.INT64, "batch", "seen"),
    ]
    read = {name for node in graph.nodes for name in node.input}
    if "table" in read - {entry.name for entry in graph.initializers}:
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
