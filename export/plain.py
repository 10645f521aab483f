"""Attention, RotaryEmbedding and RMSNormalization in operators that every supported TensorRT reads.

TensorRT's parser knows Attention from 10.14 on, the other two from 10.15 on. Even then Attention is one fused
kernel or no engine, and `softmax_precision`, which graphs in half precision carry, is refused by its mere
presence. Written out it is the pattern that TensorRT documents for fused attention: queries scaled before the
first product, an additive mask, a softmax (in float32, whatever is around it), the second product. Fused or
not, it builds.
"""

from math import sqrt
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from export.fast.surgery import constant, given, insert, maker, replace, store
from export.half import LOWEST
from export.passes import STANDARD_DOMAINS

OPSET = 22
"""The last one without these three: what is left of a graph means the same in it."""
FLOAT = ir.DataType.FLOAT
MASKED = float(np.finfo(np.float32).min)
"""In float32 graphs, as onnxruntime writes a boolean mask: finite, so a row without any key gives no NaN."""


def plain_operators(model: ir.Model) -> ir.Model:
    """The same graph without the three operators, at opset 22; the given one is left as it is.

    Meant for graphs of `static_graph`, in float32 or as `to_half` makes them of these. Left alone, and at
    their opset, are forms that no export here has: interleaved rotary embeddings or such with positions,
    heads that are not split yet, caches, a softcap, norms over several axes.
    """
    made = model.clone()
    common.ShapeInferencePass()(made)
    writer = _Writer(made.graph)
    for node in list(made.graph):
        if node.domain in STANDARD_DOMAINS:
            writer.visit(node)
    common.RemoveUnusedNodesPass()(made)
    if all(_is_known(node, OPSET) for node in made.graph.all_nodes()):
        made.graph.opset_imports[""] = OPSET
    common.ShapeInferencePass()(made)
    return made


def _is_known(node: ir.Node, opset: int) -> bool:
    """Whether an opset has the operator, with all attributes that the node gives."""
    if node.domain not in STANDARD_DOMAINS:
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return set(node.attributes) <= set(schema.attributes)


class _Writer:
    """Writes nodes in the place of others, in the order of the graph; what several read is made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.stored: dict[tuple[str, str, bytes], ir.Value] = {}
        self.masks: dict[tuple[ir.Value, float], ir.Value] = {}
        self.angles: dict[ir.Value, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Write one node out, if it is one of the three in a form that is known."""
        result = None
        if node.op_type == "Attention" and _is_plain_attention(node):
            result = self._attention(node)
        elif node.op_type == "RotaryEmbedding" and _is_plain_rotary(node):
            result = self._rotary(node)
        elif node.op_type == "RMSNormalization" and _is_plain_norm(node):
            result = self._norm(node)
        if result is not None:
            result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
            replace(node.outputs[0], result)

    def _attention(self, node: ir.Node) -> ir.Value:
        """Q [B, N, Lq, D], K and V [B, Nkv, Lk, D] -> [B, N, Lq, D]."""
        query, kind = given(node, 0), given(node, 0).dtype or FLOAT
        heads, width = _sizes(query)[1], _sizes(query)[3]
        key, value = (self._repeated(node, given(node, place), heads) for place in (1, 2))
        scale = node.attributes.get_float("scale", 1 / sqrt(width))
        scaled = self._made(node, "Mul", query, self._stored("scale", np.array(scale, kind.numpy())))
        turned = insert(node, "Transpose", [key], {"perm": [0, 1, 3, 2]}).outputs[0]
        scores = self._cast(node, self._made(node, "MatMul", scaled, turned), kind, FLOAT)
        for mask in self._masks(node, LOWEST if kind != FLOAT else MASKED):
            scores = self._made(node, "Add", scores, mask)
        shares = insert(node, "Softmax", [scores], {"axis": -1}).outputs[0]
        return self._made(node, "MatMul", self._cast(node, shares, FLOAT, kind), value)

    def _repeated(self, node: ir.Node, value: ir.Value, heads: int) -> ir.Value:
        """Keys or values, each head as often as queries share it: [B, Nkv, L, D] -> [B, heads, L, D]."""
        _, own, _, width = _sizes(value)
        if own == heads:
            return value
        apart = self._made(node, "Unsqueeze", value, self._integers("axes", 2))
        often = self._made(node, "Expand", apart, self._integers("often", 1, 1, heads // own, 1, 1))
        return self._made(node, "Reshape", often, self._integers("heads", 0, heads, -1, width))

    def _masks(self, node: ir.Node, lowest: float) -> list[ir.Value]:
        """What is added to the scores, in float32; `lowest` stands where a boolean mask says no."""
        found = []
        if len(node.inputs) > 3 and (mask := node.inputs[3]) is not None:
            if (mask, lowest) not in self.masks:
                self.masks[mask, lowest] = self._added(node, mask, lowest)
            found.append(self.masks[mask, lowest])
        if node.attributes.get_int("is_causal", 0):
            sizes = _sizes(given(node, 0))[2], _sizes(given(node, 1))[2]
            found.append(self._stored("causal", np.where(np.tri(*sizes), 0, lowest).astype(np.float32)))
        return found

    def _added(self, node: ir.Node, mask: ir.Value, lowest: float) -> ir.Value:
        if mask.dtype == ir.DataType.BOOL:
            yes, no = (self._stored("mask", np.array(each, np.float32)) for each in (0, lowest))
            return self._made(node, "Where", mask, yes, no)
        narrowed = maker(mask, "Cast")  # by `to_half`, for Attention, whose mask has the type of its queries
        if narrowed is not None and given(narrowed, 0).dtype == FLOAT:
            return given(narrowed, 0)
        return self._cast(node, mask, mask.dtype or FLOAT, FLOAT)

    def _rotary(self, node: ir.Node) -> ir.Value:
        """[B, N, L, D], of whose width the first entries are turned by angles [1 or B, L, d / 2]."""
        read, width = given(node, 0), _sizes(given(node, 0))[3]
        turned = node.attributes.get_int("rotary_embedding_dim", 0) or width
        parts = [turned // 2, turned // 2] + ([width - turned] if turned < width else [])
        split = insert(
            node, "Split", [read, self._integers("parts", *parts)], {"axis": -1}, outputs=len(parts)
        )
        (one, other, *rest), (cos, sin) = split.outputs, (self._angle(node, place) for place in (1, 2))
        pairs = ((one, cos), (other, sin), (one, sin), (other, cos))
        a, b, c, d = (self._made(node, "Mul", *pair) for pair in pairs)
        first, second = self._made(node, "Sub", a, b), self._made(node, "Add", c, d)
        return insert(node, "Concat", [first, second, *rest], {"axis": -1}).outputs[0]

    def _angle(self, node: ir.Node, place: int) -> ir.Value:
        """A table of cosines or sines for all heads: [B, L, d / 2] -> [1 or B, 1, L, d / 2]."""
        table = given(node, place)
        if table not in self.angles:
            narrowed = maker(table, "Cast")
            widened = maker(given(narrowed, 0) if narrowed is not None else table, "Expand")
            array = constant(widened.inputs[0] if widened is not None else table)
            if array is not None and table.dtype is not None and len(array) == 1:
                angle = self._stored("angles", array[:, None].astype(table.dtype.numpy()))
            else:
                angle = self._made(node, "Unsqueeze", table, self._integers("axes", 1))
            self.angles[table] = angle
        return self.angles[table]

    def _norm(self, node: ir.Node) -> ir.Value:
        """x / sqrt(mean(x * x) + epsilon) * weight, in float32, over the last axis."""
        read, weight = given(node, 0), given(node, 1)
        epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
        squares = self._made(node, "Mul", read, read)
        mean = insert(node, "ReduceMean", [squares, self._integers("axes", -1)], {"keepdims": 1}).outputs[0]
        size = self._made(node, "Sqrt", self._made(node, "Add", mean, self._stored("epsilon", epsilon)))
        return self._made(node, "Mul", self._made(node, "Div", read, size), weight)

    def _made(self, before: ir.Node, op_type: str, *inputs: ir.Value) -> ir.Value:
        return insert(before, op_type, inputs).outputs[0]

    def _cast(self, before: ir.Node, value: ir.Value, old: ir.DataType, new: ir.DataType) -> ir.Value:
        return value if old == new else insert(before, "Cast", [value], {"to": int(new)}).outputs[0]

    def _integers(self, name: str, *numbers: int) -> ir.Value:
        return self._stored(name, np.array(numbers, np.int64))

    def _stored(self, name: str, array: NDArray[Any]) -> ir.Value:
        key = (str(array.dtype), str(array.shape), array.tobytes())
        if key not in self.stored:
            self.stored[key] = store(self.graph, name, array)
        return self.stored[key]


def _sizes(value: ir.Value) -> tuple[int, ...]:
    """The sizes of axes, -1 where one is not fixed; () where their number is not known."""
    return () if value.shape is None else tuple(size if isinstance(size, int) else -1 for size in value.shape)


def _is_plain_attention(node: ir.Node) -> bool:
    """Four axes with known heads and width, no cache, no softcap, only the result is read."""
    read = [_sizes(given(node, place)) for place in range(3)]
    known = all(len(each) == 4 and each[1] > 0 and each[3] > 0 for each in read)
    shared = known and all(read[0][1] % each[1] == 0 for each in read[1:])
    more = any(value is not None for value in node.inputs[4:]) or any(
        each.uses() for each in node.outputs[1:]
    )
    causal = node.attributes.get_int("is_causal", 0) and min(each[2] for each in read if len(each) == 4) < 0
    return shared and not more and not causal and node.attributes.get_float("softcap", 0.0) == 0


def _is_plain_rotary(node: ir.Node) -> bool:
    """Four axes, halves one behind the other, a table for each place."""
    sizes = _sizes(given(node, 0))
    positions = any(value is not None for value in node.inputs[3:])
    return (
        len(sizes) == 4 and sizes[3] > 0 and not positions and not node.attributes.get_int("interleaved", 0)
    )


def _is_plain_norm(node: ir.Node) -> bool:
    """In float32, over the last axis."""
    read, axis = given(node, 0), node.attributes.get_int("axis", -1)
    return read.dtype == FLOAT and axis in (-1, len(_sizes(read)) - 1)
