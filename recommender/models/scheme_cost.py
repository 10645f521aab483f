"""Cost formulas of a model whose matrices, and perhaps item table, are held as a scheme says."""

from typing import TYPE_CHECKING, Any

from recommender.cost import CostFormulas, Count, PartCost, PartName
from recommender.models.cost import cost_card
from recommender.models.linears import quantizable
from recommender.quantization_scheme import MatrixScheme, QuantizationScheme, packed_bytes

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender

PART_OF: dict[str, PartName] = {"input_projection": "embedding", "output_projection": "head"}
"""Whose matrix it is, where it is not of the blocks."""


def scheme_cost_card(
    model: "SequentialRecommender", scheme: QuantizationScheme, *, own_table: bool
) -> dict[str, Any] | None:
    """As `cost_card`, with the bytes that are stored, scales included; None: not known.

    FLOPs are those of the model. `precision` is that of the products: fp32 where weights alone are in few
    bits, int8 where any input is. `own_table`: the item table is read in the bits of the scheme, by the
    history and by the scan; else it is read as the model holds it.
    """
    card = cost_card(model)
    if card is None:
        return None
    formulas = CostFormulas.model_validate(card)
    parts = {**formulas.parts}
    for name, linear in quantizable(model).items():
        if name in scheme.matrices:
            matrix = linear.matrix()
            rows, width = matrix.shape
            saved = matrix.numel() * matrix.element_size() - packed_bytes(rows, width, scheme.matrices[name])
            part = PART_OF.get(name, "blocks")
            parts[part] = _less(parts[part], "call", saved)
    rounded_inputs = any(matrix.activations != "none" for matrix in scheme.matrices.values())
    update: dict[str, Any] = {"parts": parts} | ({"precision": "int8"} if rounded_inputs else {})
    if own_table:
        _lighten_table(parts, model, scheme)
        update["table_precision"] = scheme.item_table
    return formulas.model_copy(update=update).model_dump(mode="json")


def _lighten_table(
    parts: dict[PartName, PartCost], model: "SequentialRecommender", scheme: QuantizationScheme
) -> None:
    """Take from scoring and from the rows that are looked up what a row of the table needs less."""
    table = model.item_table()
    width = table.shape[1]
    saved = width * table.element_size() - packed_bytes(1, width, MatrixScheme(weights=scheme.item_table))
    parts["scoring"] = _less(parts["scoring"], "row", saved)
    if "item" in parts["embedding"].bytes:  # popularity looks nothing up
        parts["embedding"] = _less(parts["embedding"], "item", saved)


def _less(part: PartCost, count: Count, saved: float) -> PartCost:
    return part.model_copy(update={"bytes": {**part.bytes, count: part.bytes.get(count, 0.0) - saved}})
