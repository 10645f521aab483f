"""Small passes over an exported graph that keep it valid, portable and free of this machine's traces."""

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

STANDARD_DOMAINS = ("", "ai.onnx")


def tidy(model: ir.Model) -> None:
    """Mend rotary caches, share equal weights and subexpressions, drop defaults, dead nodes, source paths."""
    widen_rotary_caches(model.graph)
    common.DeduplicateInitializersPass(size_limit=1 << 62)(model)  # tied item tables are stored once
    common.CommonSubexpressionEliminationPass()(model)  # cos and sin once, not per block
    strip_default_attributes(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # stack traces name files of the exporting machine


def widen_rotary_caches(graph: ir.Graph) -> int:
    """Expand cos and sin caches [1, L, d] of RotaryEmbedding to the batch; returns the inputs mended.

    Hugging Face decoders compute them once for all users and broadcast; the fusion in onnxscript 0.7 keeps
    that shape, but the operator (opset 23) does not broadcast: without this pass only batches of one run.
    """
    widened: dict[ir.Value, ir.Value] = {}
    target: ir.Value | None = None
    mended = 0
    for node in list(graph):
        if node.op_type != "RotaryEmbedding" or node.domain not in STANDARD_DOMAINS or len(node.inputs) > 3:
            continue
        for index in (1, 2):
            cache = node.inputs[index]
            assert cache is not None
            if cache.shape is not None and cache.shape[0] != 1:  # unknown: widening does no harm
                continue
            if target is None:
                target = _batch_by_one_by_one(graph, node)
            if cache not in widened:
                widened[cache] = _insert(graph, node, "Expand", [cache, target])
            node.replace_input_with(index, widened[cache])
            mended += 1
    return mended


def _batch_by_one_by_one(graph: ir.Graph, before: ir.Node) -> ir.Value:
    """The shape [batch, 1, 1] as a value, computed from the first graph input."""
    ones = ir.Value(name="rotary_ones", const_value=ir.tensor([1, 1], dtype=ir.DataType.INT64))
    ones.dtype, ones.shape = ir.DataType.INT64, ir.Shape([2])
    graph.register_initializer(ones)
    batch = _insert(graph, before, "Shape", [graph.inputs[0]], {"start": 0, "end": 1})
    return _insert(graph, before, "Concat", [batch, ones], {"axis": 0})


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    made = ir.node(op_type, inputs=inputs, attributes=attributes or {})
    graph.insert_before(before, made)
    return made.outputs[0]


def strip_default_attributes(graph: ir.Graph) -> int:
    """Remove attributes that say what holds anyway; TensorRT refuses some by name (Attention's softcap)."""
    version = graph.opset_imports[""]
    removed = 0
    for node in graph.all_nodes():
        if node.domain not in STANDARD_DOMAINS:
            continue
        defaults = onnx.defs.get_schema(node.op_type, version, "").attributes
        for name, attribute in list(node.attributes.items()):
            known = defaults.get(name)
            if known is None or known.required or not known.default_value.name:
                continue
            if attribute.value == onnx.helper.get_attribute_value(known.default_value):
                del node.attributes[name]
                removed += 1
    return removed
