"""What the cost of a half-precision graph says is read, against what is stored and what a runtime reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from export.body import scoring_product
from export.entries import cost_of
from export.half import NORMS, TYPES, to_half
from export.onnx import export_onnx
from export.variants import HalfKind, VariantName
from recommender.cost import CostFormulas, work_of
from recommender.models.cost import ID_BYTES, cost_card
from tests.export.fixtures import MAX_LENGTH, TOP_K, tiny_model

KINDS: tuple[HalfKind, ...] = ("fp16", "bf16")
FAMILIES = ("llama", "gpt2", "sasrec-post", "item-vectors")
Canonical = Callable[[str], Path]


@pytest.fixture(scope="module")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Canonical:
    """The canonical graph of a model, exported once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("canonical") / "fp32.onnx"
            export_onnx(tiny_model(name), made[name], top_k=TOP_K)
        return made[name]

    return get


def formulas_of(name: str, variant: VariantName) -> CostFormulas:
    return CostFormulas.model_validate(cost_of(tiny_model(name), variant))


def stored(model: ir.Model, type_: ir.DataType, *, of: set[str] | None = None) -> dict[str, int]:
    """{weight: bytes} of a type, single numbers aside; `of`: only those that such operators read."""
    found = {}
    for name, value in model.graph.initializers.items():
        readers = {node.op_type for node in value.consumers()}
        size = int(np.prod([*map(int, value.shape or ())]))
        if value.dtype == type_ and size > 1 and (of is None or readers & of):
            found[name] = size * int(type_.itemsize)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_is_stored_in_half_and_cast_up_for_its_product(canonical: Canonical, name: str) -> None:
    graph = to_half(ir.load(canonical(name)), "bf16")
    product = scoring_product(ir.load(canonical(name)))
    last = next(node for node in graph.graph if node.outputs[0].name == product.outputs[0].name)
    table = last.inputs[1]
    assert table is not None and table.dtype == last.outputs[0].dtype == ir.DataType.FLOAT
    cast = table.producer()
    assert cast is not None and cast.op_type == "Cast" and cast.inputs[0] is not None
    assert cast.inputs[0].is_initializer() and cast.inputs[0].dtype == ir.DataType.BFLOAT16
    found = formulas_of(name, "tensorrt-bf16")
    assert (found.precision, found.table_precision) == ("bf16", "fp32")
    rows, width = map(int, cast.inputs[0].shape or ())
    assert found.rows == rows and found.parts["scoring"].bytes["row"] == 2 * width


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_longest_call_reads_is_what_is_stored(
    canonical: Canonical, name: str, kind: HalfKind
) -> None:
    """Weights, the positions that are looked up, and the table as it is scanned; norms are in float32."""
    found = formulas_of(name, f"tensorrt-{kind}")  # type: ignore[arg-type]
    positions = MAX_LENGTH + found.extra_positions
    read = sum(
        part.bytes.get("call", 0.0) + part.bytes.get("longest", 0.0) * positions
        for part in found.parts.values()
    )
    table = found.parts["scoring"].bytes["row"] * found.rows
    halves = stored(to_half(ir.load(canonical(name)), kind), TYPES[kind])
    norms = stored(ir.load(canonical(name)), ir.DataType.FLOAT, of=NORMS)
    assert read + table == sum(halves.values()) + sum(norms.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_are_looked_up_are_half_as_wide(name: str) -> None:
    half, whole = (
        formulas_of(name, variant).parts["embedding"].bytes for variant in ("fp16", "tensorrt-fp32")
    )
    rows = {count for count in whole if count in ("item", "user")}
    assert rows
    for count in rows:
        assert half[count] - ID_BYTES == (whole[count] - ID_BYTES) / 2  # type: ignore[index]


def test_onnxruntime_casts_the_table_once_and_reads_float32(canonical: Canonical, tmp_path: Path) -> None:
    """So the formulas of the variant that it opens count 4 bytes a number, those of an engine 2."""
    ir.save(to_half(ir.load(canonical("sasrec-post")), "fp16"), tmp_path / "fp16.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "fp16.onnx"), options)
    opened = onnx.load(tmp_path / "opened.onnx").graph
    shape = list(tiny_model("sasrec-post").item_table().shape)
    tables = {each.name: each for each in opened.initializer if list(each.dims) == shape}
    gemms = [node for node in opened.node if node.op_type == "Gemm" and node.input[1] in tables]
    assert [tables[node.input[1]].data_type for node in gemms] == [TensorProto.FLOAT]
    variant, engine = (formulas_of("sasrec-post", each) for each in ("fp16", "tensorrt-fp16"))
    scanned = [work_of(each, [1], k=1)["scoring"].bytes for each in (variant, engine)]
    assert scanned == [4 * shape[0] * shape[1], 2 * shape[0] * shape[1]]
    assert (variant.precision, variant.table_precision) == ("fp16", "fp32")


@pytest.mark.parametrize("name", ["int8-body", "fast", "aot-bf16"])
def test_other_variants_cost_what_they_did(name: VariantName) -> None:
    model = tiny_model("llama")
    body = {"int8-body": "int8", "fast": None, "aot-bf16": "bf16"}[name]
    table = "int8" if name == "int8-body" else None
    assert cost_of(model, name) == cost_card(model, precision=body, table_precision=table)
