"""Rules about what transformer blocks are made of: attention, norms, rotary embeddings, scatters."""

from collections.abc import Iterator
from typing import Any

import onnx

from export.lint.findings import Asked, Fault
from export.lint.graph import Graph, attribute
from export.lint.operators import type_name

ATTENTION_INPUTS = ("Q", "K", "V", "attn_mask")
REFUSED_INPUTS = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}
REFUSED_OUTPUTS = {1: "present_key", 2: "present_value", 3: "qk_matmul_output"}
REFUSED_ATTRIBUTES = {
    "softcap": "compute the cap outside of Attention",
    "qk_matmul_output_mode": "read the result of Attention only",
    "softmax_precision": "it is for onnxruntime: build engines from a variant tensorrt-*, whose softmax is "
    "an operator of its own, in float32",
}
"""With what to do instead; a default that is written out is dropped."""


def attention_rank(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Q, K, V and the mask of Attention have four axes (onnx-tensorrt, operators.md); a warning where
    their number is not known.
    """
    for node in _of(graph, "Attention"):
        for name, value in zip(ATTENTION_INPUTS, node.input, strict=False):
            rank = graph.rank_of(value) if value else 4
            if rank is None:
                yield Fault(graph.told(node), f"how many axes {name} ({value}) has is not known",
                            "export with static shapes but for batch and length", "warning")  # fmt: skip
            elif rank != 4:
                yield Fault(graph.told(node), f"{name} has {rank} axes, and TensorRT's Attention wants 4",
                            "split the heads before it: [batch, heads, length, width]; an additive mask is "
                            "[batch, 1, length, length]")  # fmt: skip


def attention_attribute(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No softcap, qk_matmul_output_mode or softmax_precision at Attention, not even with their defaults,
    which torch writes out (onnx-tensorrt, operators.md and onnxOpCheckers.cpp).
    """
    for node in _of(graph, "Attention"):
        for name, instead in REFUSED_ATTRIBUTES.items():
            value = attribute(node, name)
            if value is not None:
                fix = instead if value else "drop attributes at their defaults"
                yield Fault(graph.told(node), f"has {name} = {value:g}, which TensorRT refuses", fix)


def attention_cache(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """No past or present keys and values, no nonpad_kv_seqlen, no scores out of Attention (onnx-tensorrt,
    operators.md): to score the next item needs none.
    """
    for node in _of(graph, "Attention"):
        used = [name for place, name in REFUSED_INPUTS.items() if any(node.input[place : place + 1])]
        used += [name for place, name in REFUSED_OUTPUTS.items() if any(node.output[place : place + 1])]
        if used:
            yield Fault(graph.told(node), f"uses {', '.join(used)}, which TensorRT's Attention does not have",
                        "export with use_cache=False")  # fmt: skip


def layer_norm_output(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Only the first output of LayerNormalization is read (onnx-tensorrt, operators.md)."""
    for node in _of(graph, "LayerNormalization"):
        if any(node.output[1:]):
            yield Fault(graph.told(node), "gives mean or deviation too, which TensorRT does not",
                        "compute them apart with ReduceMean")  # fmt: skip


def rotary_position(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Positions given to RotaryEmbedding are int64 (onnx-tensorrt, operators.md)."""
    for node in _of(graph, "RotaryEmbedding"):
        name = next(iter(node.input[3:4]), "")
        if name and graph.type_of(name) not in (0, onnx.TensorProto.INT64):
            yield Fault(graph.told(node), f"its positions are {type_name(graph.type_of(name))}, not int64",
                        "cast them to int64")  # fmt: skip


def scatter_reduction(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """ScatterND only sets: a reduction is not supported (onnx-tensorrt, operators.md)."""
    for node in _of(graph, "ScatterND"):
        reduction = attribute(node, "reduction", b"none")
        if reduction != b"none":
            yield Fault(graph.told(node), f"reduces by {reduction.decode()}, and TensorRT only sets",
                        "scatter, then reduce")  # fmt: skip


def _of(graph: Graph, op_type: str) -> Iterator[Any]:
    return (node for node in graph.nodes if node.op_type == op_type and node.domain in ("", "ai.onnx"))
