"""What a recommender has to compute and to read for a batch, from coefficients that stand in plain JSON.

A model gives the coefficients (`recommender.models.cost.cost_card`); a manifest carries them, so that the
cost of an artifact can be told without torch. What is counted:

- products: matrix products and attention, 2 per multiply-add, as `torch.utils.flop_counter` counts them. With
  a mask a kernel still computes whole squares, so causality saves nothing here.
- elementwise: norms, pooling, one comparison per score. Activations, rotary positions, softmax are left out.
- bytes: what has to come from memory at least: every weight once per call, the rows that are looked up, the
  item table once, requests and answers. Activations and scores may stay in caches and are left out.

So it is a lower limit, of histories without padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Literal[
    "call", "user", "item", "position", "longest", "pair", "last_pair", "row", "user_row", "answer"
]
"""What a coefficient is multiplied by. A history of L items takes T = L + extra_positions positions (an empty
one counts as one item). call: 1; user: B; item: sum of L; position: sum of T; longest: the largest T;
pair: sum of T * T; last_pair: sum of T (one query over T keys); row: rows of the item table;
user_row: B times these; answer: B times k."""

ATTENTION: frozenset[Count] = frozenset({"pair", "last_pair"})
PartName = Literal["embedding", "blocks", "head", "scoring", "top_k"]
Coefficients = dict[Count, float]


class PartCost(BaseModel):
    """Coefficients of one part of a call."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    products: Coefficients = Field(default_factory=dict)
    elementwise: Coefficients = Field(default_factory=dict)
    bytes: Coefficients = Field(default_factory=dict)


class CostFormulas(BaseModel):
    """The cost of one model (or one variant of an artifact) for any batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    precision: str = Field(description="of the products in the blocks and around them: fp32, bf16, ...")
    table_precision: str = Field(description="of the item table that is scored")
    rows: int = Field(ge=1, description="rows of the item table, padding included")
    max_length: int = Field(ge=1)
    extra_positions: int = Field(0, ge=0, description="positions beside the items: prompts, a padding token")
    shapes: tuple[tuple[int, int], ...] = Field(
        (), description="(inputs, outputs) of the linear maps of the blocks, each once"
    )
    parts: dict[PartName, PartCost]


@dataclass(frozen=True)
class Work:
    """What one part of a call has to do."""

    products: float = 0.0  # FLOPs, attention included
    attention: float = 0.0  # FLOPs of these
    elementwise: float = 0.0  # FLOPs
    bytes: float = 0.0

    @property
    def flops(self) -> float:
        """All that is counted."""
        return self.products + self.elementwise

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.products + other.products,
            self.attention + other.attention,
            self.elementwise + other.elementwise,
            self.bytes + other.bytes,
        )

    def scaled(self, factor: float) -> "Work":
        """So many times this work."""
        return Work(
            *(factor * value for value in (self.products, self.attention, self.elementwise, self.bytes))
        )


def work_of(
    formulas: CostFormulas, lengths: Sequence[int], *, k: int, rows: int | None = None
) -> dict[PartName, Work]:
    """The least work of one call by part, for histories of these lengths and lists of k items.

    Lengths beyond `max_length` count as it. `rows`: of the item table, where it has changed since the
    formulas were noted.
    """
    found = counts(formulas, lengths, k=k, rows=rows)
    return {name: _work(part, found) for name, part in formulas.parts.items()}


def counts(
    formulas: CostFormulas, lengths: Sequence[int], *, k: int, rows: int | None = None
) -> Mapping[Count, float]:
    """What the coefficients are multiplied by; see `Count`."""
    items = [min(max(int(length), 1), formulas.max_length) for length in lengths]
    positions = [length + formulas.extra_positions for length in items]
    users, table = len(items), formulas.rows if rows is None else rows
    return {
        "call": 1,
        "user": users,
        "item": sum(items),
        "position": sum(positions),
        "longest": max(positions, default=0),
        "pair": sum(length * length for length in positions),
        "last_pair": sum(positions),
        "row": table,
        "user_row": users * table,
        "answer": users * k,
    }


def _work(part: PartCost, found: Mapping[Count, float]) -> Work:
    def total(coefficients: Coefficients) -> float:
        return float(sum(value * found[name] for name, value in coefficients.items()))

    attention = {name: value for name, value in part.products.items() if name in ATTENTION}
    return Work(total(part.products), total(attention), total(part.elementwise), total(part.bytes))
