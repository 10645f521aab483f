"""The variants of an artifact: several ways to one list; the fastest that ranks alike is served.

`fp32` is the canonical graph, portable and whole. The others are a body (histories to user vectors) and a
head (user vectors to lists), so the catalogue can be swapped without touching the body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

HeadKind = Literal["exact", "int8"]
VariantName = Literal["fp32", "fast", "scan-int8"]
CANONICAL: VariantName = "fp32"


@dataclass(frozen=True)
class Split:
    """A variant that is made of a body and a head."""

    head: HeadKind
    tried_from: int  # items from which on it is tried without being asked for
    about: str

    @property
    def head_file(self) -> str:
        """The graph of the head, in the folder of the catalogue."""
        return f"head-{self.head}.onnx"


SPLIT: dict[VariantName, Split] = {
    "fast": Split("exact", 0, "a body made for onnxruntime; every item is scored in float32"),
    "scan-int8": Split("int8", 20_000, "the same body; 8-bit scan, its best 50 are scored again in float32"),
}
"""In the order in which they are tried."""


def to_try(asked: Sequence[VariantName] | None, n_items: int) -> tuple[VariantName, ...]:
    """The canonical graph first, then those asked for, or (None) those that may pay for so many items."""
    assert set(SPLIT) | {CANONICAL} == set(get_args(VariantName))
    chosen = (
        [name for name, split in SPLIT.items() if n_items >= split.tried_from] if asked is None else asked
    )
    return (CANONICAL, *(name for name in SPLIT if name in chosen))
