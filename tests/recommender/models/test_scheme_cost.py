"""The cost of quantized variants: work as before, bytes by the bits that are stored."""

import pytest

from recommender.cost import CostFormulas, work_of
from recommender.models.cost import cost_card
from recommender.models.linears import body_linears
from recommender.models.scheme_cost import scheme_cost_card
from recommender.quantization_scheme import Activations, MatrixScheme, QuantizationScheme
from tests.recommender.models.test_cost import formulas_of, model_of

INT4 = MatrixScheme(weights="int4", group=16)


def formulas(name: str, scheme: QuantizationScheme, *, own_table: bool = False) -> CostFormulas:
    return CostFormulas.model_validate(scheme_cost_card(model_of(name), scheme, own_table=own_table))


@pytest.mark.parametrize("name", ["llama", "gpt2", "sasrec"])
def test_matrices_in_four_bits_take_half_a_byte_a_number_and_their_scales(name: str) -> None:
    model, plain = model_of(name), formulas_of(model_of(name))
    linears = body_linears(model.bodies()["user"])
    sizes = [linear.matrix().shape for linear in linears.values()]
    found = formulas(name, QuantizationScheme(matrices=dict.fromkeys(linears, INT4)))
    saved = plain.parts["blocks"].bytes["call"] - found.parts["blocks"].bytes["call"]
    assert saved == sum(4 * n * k - (n * k / 2 + 4 * n * -(-k // 16)) for n, k in sizes)
    before, after = (work_of(each, [3, 9], k=5) for each in (plain, found))
    assert {part: work.flops for part, work in before.items()} == {
        part: work.flops for part, work in after.items()
    }
    assert (found.precision, found.table_precision) == ("fp32", "fp32")  # products are in float32
    assert found.parts["scoring"] == plain.parts["scoring"]


def test_projections_are_read_in_their_bits_where_the_scheme_names_them() -> None:
    plain = formulas_of(model_of("llama"))
    names = {"embedding": "input_projection", "head": "output_projection"}
    found = formulas("llama", QuantizationScheme(matrices=dict.fromkeys(names.values(), INT4)))
    for part, name in names.items():
        n, k = getattr(model_of("llama"), name).weight.shape
        saved = plain.parts[part].bytes["call"] - found.parts[part].bytes["call"]  # type: ignore[index]
        assert saved == 4 * n * k - (n * k / 2 + 4 * n * -(-k // 16))
    assert found.parts["blocks"] == plain.parts["blocks"]


def test_what_the_scheme_leaves_in_float32_is_read_whole() -> None:
    linears = list(body_linears(model_of("llama").bodies()["user"]))
    plain = formulas_of(model_of("llama"))
    none = formulas("llama", QuantizationScheme(matrices={linears[0]: MatrixScheme(weights="fp32")}))
    one = formulas("llama", QuantizationScheme(matrices={linears[0]: MatrixScheme(weights="int8")}))
    assert none.parts == plain.parts
    assert none.parts["blocks"].bytes["call"] > one.parts["blocks"].bytes["call"]


@pytest.mark.parametrize(("activations", "precision"), [("none", "fp32"), ("dynamic", "int8")])
def test_products_with_inputs_in_8_bits_are_not_in_fp32(activations: Activations, precision: str) -> None:
    matrices = {"0.mlp.down_proj": MatrixScheme(weights="int8", activations=activations)}
    assert formulas("llama", QuantizationScheme(matrices=matrices)).precision == precision


@pytest.mark.parametrize(("bits", "row"), [("int8", 8 + 4), ("int4", 8 / 2 + 4)])
def test_a_table_of_its_own_is_read_in_its_bits_by_history_and_scan(bits: str, row: float) -> None:
    scheme = QuantizationScheme.model_validate({"matrices": {}, "item_table": bits})
    plain, found = formulas_of(model_of("llama")), formulas("llama", scheme, own_table=True)
    assert found.parts["scoring"].bytes["row"] == row
    looked_up = plain.parts["embedding"].bytes["item"] - found.parts["embedding"].bytes["item"]
    assert looked_up == 4 * 8 - row
    assert found.table_precision == bits and found.parts["blocks"] == plain.parts["blocks"]
    assert formulas("llama", scheme).parts == plain.parts  # qdq reads the float32 table


def test_a_model_without_known_cost_has_none() -> None:
    model = model_of("llama")
    model.costs = lambda: None  # type: ignore[method-assign]
    assert cost_card(model) is None
    assert scheme_cost_card(model, QuantizationScheme(matrices={}), own_table=False) is None
