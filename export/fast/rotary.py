"""Rotary embedding from constant tables: onnxruntime's own operator takes one offset for the whole call."""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.surgery import (
    CONTRIB,
    LAST,
    constant,
    dims,
    given,
    insert,
    integers,
    maker,
    nodes_of,
    replace,
    slice_bounds,
    store,
)


class _Rows(NamedTuple):
    """Rows of a constant table, from `start` on."""

    table: np.ndarray  # [positions, dims]
    start: ir.Value | None  # int64 [1]; None: 0


def rotate_by_tables(model: ir.Model) -> int:
    """RotaryEmbedding(x, cuts of cos and sin tables) -> the vendor operator with tables; returns how many.

    Leaves alone what turns only a part of a head, interleaved halves, and angles that follow the content.
    """
    graph, done = model.graph, 0
    for node in nodes_of(graph, "RotaryEmbedding"):
        plain = len(node.inputs) == 3 and not set(node.attributes) - {"num_heads"}
        parts = [_rows(node.inputs[index], axis=1) for index in (1, 2)] if plain else []
        if not plain or len(dims(given(node, 0)) or ()) != 4:
            continue
        cos, sin = parts
        if cos is None or sin is None or not _same_start(cos.start, sin.start):
            continue
        _write(graph, node, given(node, 0), node.outputs[0], cos, sin)
        done += 1
    common.RemoveUnusedNodesPass()(model)
    return done


def rotate_last_query(model: ir.Model) -> int:
    """The rotary embedding of one query, in six small steps -> the vendor operator; returns how many.

    x cos + cat(-x[half:], x[:half]) sin, with the row of cos and sin that belongs to the last position.
    """
    graph, done = model.graph, 0
    for node in nodes_of(graph, "Add"):
        products = [maker(value, "Mul") for value in node.inputs]
        if None in products:
            continue
        for straight, turned in (products, products[::-1]):
            assert straight is not None and turned is not None
            found = _last_query(straight, turned)
            if found is not None:
                _write(graph, node, found[0], node.outputs[0], found[1], found[2])
                done += 1
                break
    common.RemoveUnusedNodesPass()(model)
    return done


def _last_query(straight: ir.Node, turned: ir.Node) -> tuple[ir.Value, _Rows, _Rows] | None:
    """(x, cos, sin) of Mul(x, cos) and Mul(half turn of x, sin)."""
    for x, factor in ((0, 1), (1, 0)):
        source = given(straight, x)
        shape = dims(source)
        if shape is None or len(shape) != 4 or shape[2] != 1 or not isinstance(shape[3], int):
            continue
        for half, other in ((0, 1), (1, 0)):
            if not _is_half_turn(turned.inputs[half], source, shape[3]):
                continue
            cos, sin = (_rows(v, axis=None) for v in (straight.inputs[factor], turned.inputs[other]))
            cos, sin = _one_half(cos, shape[3]), _one_half(sin, shape[3])
            if cos is not None and sin is not None and _same_start(cos.start, sin.start):
                return source, cos, sin
    return None


def _is_half_turn(value: ir.Value | None, source: ir.Value, width: int) -> bool:
    """Concat(-x[half:], x[:half]) along the last axis."""
    joined = maker(value, "Concat")
    if joined is None or joined.attributes.get_int("axis", 0) not in (-1, 3) or len(joined.inputs) != 2:
        return False
    negated = maker(joined.inputs[0], "Neg")
    upper = maker(negated.inputs[0], "Slice") if negated is not None else None
    lower = maker(joined.inputs[1], "Slice")
    if upper is None or lower is None or not upper.inputs[0] is lower.inputs[0] is source:
        return False
    high, low = slice_bounds(upper), slice_bounds(lower)
    if high is None or low is None or width % 2:
        return False
    (high_start, high_end, high_axes), half = high, width // 2
    ends = high_end in ([LAST], [width])
    return high_start == [half] and ends and high_axes in ([3], [-1]) and low in (
        ([0], [half], [3]), ([0], [half], [-1]),
    )  # fmt: skip


def _rows(value: ir.Value | None, axis: int | None) -> _Rows | None:
    """`value` as rows of a constant: a cut along `axis`, or with None a single row, repeated or not."""
    repeated = maker(value, "Expand")
    if repeated is not None:
        value = repeated.inputs[0]
    whole = constant(value)
    if whole is not None and axis is None and whole.size == whole.shape[-1]:
        return _Rows(whole.reshape(1, -1), None)
    node = maker(value, "Gather" if axis is None else "Slice")
    table = None if node is None else constant(node.inputs[0])
    if node is None or table is None or table.dtype != np.float32:
        return None
    if axis is None:
        index = given(node, 1)
        single = (
            index.shape is not None and index.shape == (1,) and table.size == len(table) * table.shape[-1]
        )
        plain = node.attributes.get_int("axis", 0) == 0 and index.dtype == ir.DataType.INT64
        return _Rows(table.reshape(len(table), -1), index) if single and plain else None
    if table.ndim != 3 or len(table) != 1 or len(node.inputs) != 4 or integers(node.inputs[3]) != [axis]:
        return None
    starts = integers(node.inputs[1])
    return _Rows(table[0], None if starts == [0] else given(node, 1))


def _same_start(one: ir.Value | None, other: ir.Value | None) -> bool:
    """True where both are the same value, or computed alike."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    mine, theirs = one.producer(), other.producer()
    if mine is None or theirs is None or mine.op_type != theirs.op_type or len(mine.inputs) != 2:
        return False
    return all(
        a is b or (integers(a) is not None and integers(a) == integers(b))
        for a, b in zip(mine.inputs, theirs.inputs, strict=True)
    )


def _one_half(rows: _Rows | None, width: int) -> _Rows | None:
    """The first half of the columns, where the second is its copy."""
    if rows is None or rows.table.shape[1] != width:
        return None
    first, second = np.split(rows.table, 2, axis=1)
    return _Rows(np.ascontiguousarray(first), rows.start) if np.array_equal(first, second) else None


def _write(graph: ir.Graph, before: ir.Node, x: ir.Value, old: ir.Value, cos: _Rows, sin: _Rows) -> None:
    start = cos.start if cos.start is not None else store(graph, "first", np.zeros(1, np.int64))
    caches = [store(graph, name, part.table) for name, part in (("cos", cos), ("sin", sin))]
    made = insert(before, "RotaryEmbedding", [x, start, *caches], domain=CONTRIB, like=x)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(old, made.outputs[0])
