"""Weights may all be finite and what they make of histories may not be, or only just."""

import json
import math
from typing import Any

import pytest
import torch

from compress.gram import gram
from compress.quantize import QuantizeConfig
from compress.quantize import run as quantize
from compress.sparsify import SparsifyConfig
from compress.sparsify import run as sparsify
from compress.sparsity import sparsegpt
from compress.width import PruneWidthConfig
from compress.width import run as prune_width
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound

from .conftest import MakeContext
from .narrowed import changed

Values = dict[str, Any]

STAGES: list[tuple[Any, Any, Values]] = [
    *((QuantizeConfig, quantize, {"scheme": scheme}) for scheme in ("int8-dynamic", "int8-static", "mixed")),
    (QuantizeConfig, quantize, {"scheme": "int4", "method": "gptq", "group": 16}),
    (SparsifyConfig, sparsify, {"method": "wanda"}),
    (SparsifyConfig, sparsify, {"method": "sparsegpt"}),
    *(
        (PruneWidthConfig, prune_width, {"ffn": 0.5, "importance": importance})
        for importance in ("activation", "taylor", "taylor-second")
    ),
]
NAMES = [" ".join(map(str, values.values())) for *_, values in STAGES]


def with_norm_of(size: float, teacher: Bound, prepared: Prepared) -> Bound:
    def grow(model: LlmRecommender) -> None:
        model.body.blocks[1].post_attention_layernorm.weight.fill_(size)

    return changed(teacher, prepared, f"norm-of-{size}", grow)


@pytest.mark.parametrize(("config", "run", "values"), STAGES, ids=NAMES)
def test_a_model_that_overflows_is_refused(
    config: Any, run: Any, values: Values, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    source, context = with_norm_of(3e38, teacher, prepared), make_context("refused")
    with pytest.raises(InputError, match="hold NaN or infinite numbers on the calibration") as error:
        run(config(of="source", as_="made", **values), {"source": source}, context)
    assert error.value.exit_code == 2 and error.value.fix
    assert not (context.folder / "checkpoint").exists()


@pytest.mark.parametrize(("config", "run", "values"), STAGES[:-2], ids=NAMES[:-2])
def test_inputs_whose_squares_overflow_are_no_hindrance(
    config: Any, run: Any, values: Values, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    source, context = with_norm_of(1e15, teacher, prepared), make_context("made")
    outputs = run(config(of="source", as_="made", **values), {"source": source}, context)
    json.dumps(outputs.metrics, allow_nan=False)
    assert (context.folder / "checkpoint").is_dir()


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e18, 1e25, 3e37])
def test_second_moments_are_those_of_float64_whatever_the_size(size: float) -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rows = rows / rows.abs().max()
    expected = (rows.double() * size).T @ (rows.double() * size)
    found = gram(rows * size)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-6)
    if size == 1.0:
        assert torch.equal(found, (rows.T @ rows).double())
    assert torch.equal(gram(torch.zeros(3, 2)), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("factor", [4.0**-40, 4.0**100])
def test_sparsegpt_prunes_the_same_whatever_the_size_of_the_inputs(pattern: Any, factor: float) -> None:
    draw = torch.Generator().manual_seed(2)
    weight, rows = torch.randn(6, 16, generator=draw), torch.randn(64, 16, generator=draw)
    hessian = gram(rows)
    assert math.isfinite(float((hessian * factor).max()))
    expected = sparsegpt(weight, hessian, 0.5, pattern=pattern)
    found = sparsegpt(weight, hessian * factor, 0.5, pattern=pattern)
    assert torch.equal(found.weight, expected.weight) and torch.equal(found.kept, expected.kept)
