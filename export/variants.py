"""The variants of an artifact: several ways to one list; the fastest that ranks alike is served.

`fp32` is the canonical graph, portable and whole; `fp16` and `bf16` are the same in half precision, `aot` and
`aot-bf16` compiled for one kind of machine. The others are a body (histories to user vectors) and a head
(user vectors to lists), so the catalogue can be swapped without touching the body.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from recommender.quantization_scheme import SERVED, holders, unserved

HeadKind = Literal["exact", "int8", "int4", "recorded"]
BodyKind = Literal["fast", "int8", "quantized", "qdq"]
HalfKind = Literal["fp16", "bf16"]
EngineKind = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
VariantName = Literal[
    "fp32",
    "fast",
    "scan-int8",
    "scan-int4",
    "ann",
    "int8-body",
    "quantized",
    "qdq",
    "fp16",
    "bf16",
    "aot",
    "aot-bf16",
    "tensorrt-fp32",
    "tensorrt-fp16",
    "tensorrt-bf16",
    "tensorrt-int8",
    "tensorrt-fp8",
]
CANONICAL: VariantName = "fp32"


@dataclass(frozen=True)
class Split:
    """A variant that is made of a body and a head."""

    body: BodyKind
    head: HeadKind
    tried_from: int | None  # items from which on it is tried without being asked for; None: by name only
    about: str
    lossy: bool = False  # ranks otherwise: never the default, and its quality is what has to hold
    index: bool = False  # an approximate index chooses which items are scored


SPLIT: dict[VariantName, Split] = {
    "fast": Split("fast", "exact", 0, "a body made for onnxruntime; every item is scored in float32"),
    "scan-int8": Split(
        "fast", "int8", 20_000, "the same body; 8-bit scan, its best 50 are scored again in float32"
    ),
    "scan-int4": Split(
        "fast",
        "int4",
        None,
        "the same body; 4-bit scan, its best 100 (from 200,000 items on: 200) are scored again in float32",
    ),
    "ann": Split(
        "fast",
        "exact",
        None,
        "the same body; an approximate index (faiss) chooses the items that are scored in "
        "float32; may miss some",
        lossy=True,
        index=True,
    ),
    "int8-body": Split(
        "int8",
        "int8",
        None,
        "weights and activations of the body in 8 bits, and an 8-bit scan whose best 50 are scored again in "
        "float32; ranks otherwise",
        lossy=True,
    ),
    "quantized": Split(
        "quantized",
        "exact",
        None,
        "the body as the checkpoint's quantization scheme says, for onnxruntime",
        lossy=True,
    ),
    "qdq": Split(
        "qdq",
        "exact",
        None,
        "the same in standard operators (symmetric Q/DQ), for TensorRT and other runtimes; onnxruntime on a "
        "CPU runs it, slowly",
        lossy=True,
    ),
}
"""In the order in which they are tried."""


HALF: dict[VariantName, HalfKind] = {"fp16": "fp16", "bf16": "bf16"}
"""The canonical graph in half precision, for other runtimes: by name only, after all others."""


@dataclass(frozen=True)
class Compiled:
    """The canonical graph compiled by AOTInductor for the machine that exports it; run by torch."""

    precision: str
    half: bool  # matrices in bfloat16: ranks otherwise
    about: str


COMPILED: dict[VariantName, Compiled] = {
    "aot": Compiled("fp32", False, "the canonical graph compiled for one kind of machine (AOTInductor)"),
    "aot-bf16": Compiled(
        "bf16",
        True,
        "the same with matrix products in bfloat16, and attention where there are matrix units for it; "
        "norms, softmax, angles, scores and the item table in float32; ranks otherwise",
    ),
}
"""By name only and never the default, as they need torch and one kind of machine; last of all."""


ENGINE: dict[VariantName, EngineKind] = {
    "tensorrt-fp32": "fp32",
    "tensorrt-fp16": "fp16",
    "tensorrt-bf16": "bf16",
    "tensorrt-int8": "int8",
    "tensorrt-fp8": "fp8",
}
"""TensorRT engines of the whole graph, with fixed lengths (`export.engines`): by name only, for one GPU."""


def to_try(asked: Sequence[VariantName] | None, n_items: int) -> tuple[VariantName, ...]:
    """The canonical graph first, then those asked for, or (None) those that may pay for so many items."""
    assert {*SPLIT, *HALF, *COMPILED, *ENGINE, CANONICAL} == set(get_args(VariantName))
    chosen = _may_pay(n_items) if asked is None else asked
    return (CANONICAL, *(name for name in (*SPLIT, *HALF, *COMPILED, *ENGINE) if name in chosen))


def _may_pay(n_items: int) -> list[VariantName]:
    return [
        name for name, split in SPLIT.items() if split.tried_from is not None and n_items >= split.tried_from
    ]


ROUNDS: tuple[VariantName, ...] = ("int8-body", "tensorrt-fp8")
"""Variants that round the matrices themselves, whatever the checkpoint records."""


def scheme_problem(name: VariantName, scheme: str | None, of: str) -> str | None:
    """Why a variant cannot be made of a checkpoint with this scheme (its summary; None: not quantized)."""
    if name in SERVED:
        if scheme is None:
            return (
                f"{of!r} is not quantized, and {name} holds what a checkpoint records: put a stage quantize "
                "before this one, or take int8-body"
            )
        return unserved(name, scheme)
    if name in ROUNDS and scheme is not None and not scheme.startswith("items-"):
        again = f"{of!r} is quantized already ({scheme}), and {name} would round it again"
        return f"{again}; to hold what it records: {holders(scheme)}"
    return None


def is_lossy(name: str) -> bool:
    """Whether a variant ranks otherwise than the canonical graph."""
    rounded = {*HALF, *(each for each, compiled in COMPILED.items() if compiled.half)}
    rounded |= {each for each, kind in ENGINE.items() if kind != "fp32"}
    return name in rounded or any(name == each and split.lossy for each, split in SPLIT.items())


def may_be_default(name: str) -> bool:
    """Whether a variant ranks like the canonical graph and runs wherever onnxruntime does."""
    return not is_lossy(name) and name not in COMPILED and name not in ENGINE


def sizes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the entry of every variant says alike: the numbers of the canonical one."""
    same = ("format", "opset", "top_k", "max_length", "parameters", "body_parameters", "inputs", "outputs")
    return {key: manifest["variants"][0][key] for key in same}
