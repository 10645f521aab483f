"""Cost formulas of a graph that is in half precision but its norms and the product with the item table."""

from typing import TYPE_CHECKING, Any

from torch import nn

from recommender.cost import CostFormulas, Count, PartCost, PartName
from recommender.models.cost import ID_BYTES, PRECISIONS, WIDTHS, cost_card, scoring_cost

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender

SCORES = "fp32"
"""What scores are computed in: the table is cast up for them."""


def half_cost_card(
    model: "SequentialRecommender", kind: str, *, table_read: str = SCORES
) -> dict[str, Any] | None:
    """As `cost_card`, of a graph that is written in `kind` (fp16, bf16); None: not known.

    Matrices, biases and the rows that are looked up are stored in `kind`, weights of norms in float32.
    `table_read`: what each call reads of the table that is scored: `kind` where it is cast anew each time,
    fp32 where a runtime casts it once and keeps that. Raises KeyError for a precision not in `WIDTHS`.
    """
    card, own = cost_card(model, precision=kind, table_precision=SCORES), model.costs()
    if card is None or own is None:
        return None
    formulas, stored = CostFormulas.model_validate(card), WIDTHS[PRECISIONS[own.weights]]
    saved, heads = stored - WIDTHS[kind], own.around.get("head", ())
    blocks = [block for body in model.bodies().values() for block in body.blocks]
    changed: dict[PartName, PartCost] = {
        "embedding": _looked_up(own.embedding, WIDTHS[kind] / stored),
        "blocks": _less(formulas.parts["blocks"], saved * sum(map(_biases, blocks))),
        "head": _less(formulas.parts["head"], saved * sum(map(_biases, heads))),
        "scoring": scoring_cost(model.item_table(), WIDTHS[table_read]),
    }
    return formulas.model_copy(update={"parts": formulas.parts | changed}).model_dump(mode="json")


def _looked_up(embedding: PartCost, share: float) -> PartCost:
    """The same with every byte but those of ids at this share; there are no norms among them."""
    smaller: dict[Count, float] = {}
    for count, value in embedding.bytes.items():
        ids = ID_BYTES if count in ("item", "user") else 0
        smaller[count] = ids + (value - ids) * share
    return embedding.model_copy(update={"bytes": smaller})


def _less(part: PartCost, saved: float) -> PartCost:
    if not saved:
        return part
    return part.model_copy(update={"bytes": {**part.bytes, "call": part.bytes["call"] - saved}})


def _biases(module: nn.Module) -> int:
    """Numbers that are in no matrix and no norm."""
    found = 0
    for each in module.modules():
        if not isinstance(each, nn.LayerNorm) and not type(each).__name__.endswith("RMSNorm"):
            found += sum(weight.numel() for weight in each.parameters(recurse=False) if weight.ndim < 2)
    return found
