"""Sensitivity measures matrices alone and leaves the model; the mix keeps to its budget."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from compress.quantization.rounding import rounded, tried
from compress.quantization.schemes import options
from compress.quantization.sensitivity import Rises, mix, rises
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme

OPTIONS = list(options(32).values())
KINDS = list(options(32))


def linears(*widths: int) -> dict[str, Linear]:
    torch.manual_seed(0)
    return {f"{i}.w": Linear(f"{i}.w", nn.Linear(width, 64), False) for i, width in enumerate(widths)}


def test_each_matrix_is_measured_alone_and_put_back_to_the_bit() -> None:
    ours = linears(32, 32, 64)
    before = {name: linear.matrix().clone() for name, linear in ours.items()}
    touched: list[list[str]] = []

    def evaluate() -> float:
        touched.append([name for name in ours if not torch.equal(ours[name].matrix(), before[name])])
        return 10.0 + len(touched)

    found = rises(ours, {name: OPTIONS[:-1] for name in ours}, evaluate, base=10.0)
    assert touched == [["0.w"], ["0.w"], ["1.w"], ["1.w"], ["2.w"], ["2.w"]]
    assert found["1.w"] == {"int4": 3.0, "int8-dynamic": 4.0}
    assert all(torch.equal(ours[name].matrix(), before[name]) for name in ours)


def test_gptq_is_fed_block_by_block_and_rounds_what_it_is_fed() -> None:
    ours = linears(32, 32)
    before = ours["0.w"].matrix().clone()
    inputs = torch.randn(200, 32) @ torch.randn(32, 32)
    hessian, asked, seen = 2 / 200 * (inputs.T @ inputs).double(), list[list[str]](), list[torch.Tensor]()

    def hessians(block: Mapping[str, Linear]) -> dict[str, torch.Tensor]:
        asked.append(list(block))
        return dict.fromkeys(block, hessian)

    def evaluate() -> float:
        seen.append(ours["0.w"].matrix().clone())
        return 0.0

    scheme = MatrixScheme(weights="int4")
    rises(ours, {name: [scheme] for name in ours}, evaluate, 0.0, hessians)
    assert asked == [["0.w"], ["1.w"]]
    assert torch.equal(seen[0], rounded(before, scheme, hessian).values)
    assert not torch.equal(seen[0], rounded(before, scheme).values)
    assert torch.equal(seen[1], before)


def test_weights_are_put_back_after_an_error() -> None:
    ours = linears(32)
    before = ours["0.w"].matrix().clone()
    with pytest.raises(RuntimeError, match="stop"), tried(ours, {"0.w": OPTIONS[0]}):
        assert not torch.equal(ours["0.w"].matrix(), before)
        raise RuntimeError("stop")
    assert torch.equal(ours["0.w"].matrix(), before)
    assert not ours["0.w"].module._forward_pre_hooks


ALONE: Rises = {
    "0.w": {"int4": 0.5, "int8-dynamic": 0.002},
    "1.w": {"int4": 0.003, "int8-dynamic": 0.001},
    "2.w": {"int4": -0.01, "int8-dynamic": 0.0},
}


def additive(schemes: Mapping[str, MatrixScheme]) -> float:
    return sum(max(ALONE[name].get(scheme.kind, 0.0), 0.0) for name, scheme in schemes.items())


def kinds(schemes: Mapping[str, MatrixScheme]) -> list[str]:
    return [scheme.kind for scheme in schemes.values()]


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (1.0, ["int4", "int4", "int4"]),
        (0.01, ["int8-dynamic", "int4", "int4"]),
        (0.004, ["int8-dynamic", "int8-dynamic", "int4"]),
        (0.0, ["fp32", "fp32", "int4"]),
    ],
)
def test_more_bits_go_where_they_save_most(budget: float, wanted: list[str]) -> None:
    ours = linears(32, 32, 32)
    made = mix(ours, dict.fromkeys(ours, OPTIONS), ALONE, budget=budget, measure=additive)
    assert kinds(made.schemes) == wanted
    assert made.measured == made.predicted <= budget


def test_a_larger_matrix_gets_more_bits_later() -> None:
    ours = linears(32, 1024)
    alone: Rises = {name: {"int4": 0.1, "int8-dynamic": 0.0} for name in ours}
    made = mix(ours, dict.fromkeys(ours, OPTIONS), alone, budget=0.1, measure=lambda _: 0.0)
    assert kinds(made.schemes) == ["int8-dynamic", "int4"]


def test_where_matrices_lose_more_together_than_alone_the_measurement_has_the_last_word() -> None:
    ours = linears(32, 32, 32)
    made = mix(ours, dict.fromkeys(ours, OPTIONS), ALONE, budget=0.01, measure=lambda s: 10 * additive(s))
    assert made.measured <= 0.01 and 10 * additive(made.schemes) == pytest.approx(made.measured)
    assert kinds(made.schemes) == ["fp32", "int8-dynamic", "int4"] or made.predicted <= 0.001


def test_in_the_end_everything_stays_as_it_is() -> None:
    ours = linears(32, 32)
    alone = {name: ALONE[name] for name in ours}

    def never(schemes: Mapping[str, MatrixScheme]) -> float:
        return 0.0 if set(kinds(schemes)) == {"fp32"} else 1.0

    made = mix(ours, dict.fromkeys(ours, OPTIONS), alone, budget=0.0, measure=never)
    assert kinds(made.schemes) == ["fp32", "fp32"] and made.measured == 0.0
