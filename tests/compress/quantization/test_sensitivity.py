"""Sensitivity measures matrices alone and leaves the model; the mix keeps to its budget."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from compress.quantization.damage import Damage
from compress.quantization.rounding import rounded, tried
from compress.quantization.schemes import options
from compress.quantization.sensitivity import Sensitivities, by_worth, mix, sensitivities
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme

OPTIONS = list(options(32).values())
KINDS = list(options(32))


def linears(*widths: int) -> dict[str, Linear]:
    torch.manual_seed(0)
    return {f"{i}.w": Linear(f"{i}.w", nn.Linear(width, 64), False) for i, width in enumerate(widths)}


def of(kl: float) -> Damage:
    return Damage(kl, 0.1 * kl, 0.0, 0.0)


def test_each_matrix_is_measured_alone_and_put_back_to_the_bit() -> None:
    ours = linears(32, 32, 64)
    before = {name: linear.matrix().clone() for name, linear in ours.items()}
    touched: list[list[str]] = []

    def measure() -> Damage:
        touched.append([name for name in ours if not torch.equal(ours[name].matrix(), before[name])])
        return of(len(touched))

    found = sensitivities(ours, {name: OPTIONS[:-1] for name in ours}, measure)
    assert touched == [["0.w"], ["0.w"], ["1.w"], ["1.w"], ["2.w"], ["2.w"]]
    assert found["1.w"] == {"int4": of(3), "int8-dynamic": of(4)}
    assert all(torch.equal(ours[name].matrix(), before[name]) for name in ours)


def test_gptq_is_fed_block_by_block_and_rounds_what_it_is_fed() -> None:
    ours = linears(32, 32)
    before = ours["0.w"].matrix().clone()
    inputs = torch.randn(200, 32) @ torch.randn(32, 32)
    hessian, asked, seen = 2 / 200 * (inputs.T @ inputs).double(), list[list[str]](), list[torch.Tensor]()

    def hessians(block: Mapping[str, Linear]) -> dict[str, torch.Tensor]:
        asked.append(list(block))
        return dict.fromkeys(block, hessian)

    def measure() -> Damage:
        seen.append(ours["0.w"].matrix().clone())
        return of(0)

    scheme = MatrixScheme(weights="int4")
    sensitivities(ours, {name: [scheme] for name in ours}, measure, hessians)
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


ALONE: Sensitivities = {
    "0.w": {"int4": of(0.5), "int8-dynamic": of(0.002)},
    "1.w": {"int4": of(0.003), "int8-dynamic": of(0.001)},
    "2.w": {"int4": of(0.0), "int8-dynamic": of(0.0)},
}


def additive(schemes: Mapping[str, MatrixScheme], factor: float = 1.0) -> Damage:
    alone = [ALONE[name].get(scheme.kind, of(0)).kl for name, scheme in schemes.items()]
    return of(factor * sum(alone))


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
    assert made.measured.kl == pytest.approx(made.predicted) and made.measured.kl <= budget


def test_a_larger_matrix_gets_more_bits_later() -> None:
    ours = linears(32, 1024)
    alone: Sensitivities = {name: {"int4": of(0.1), "int8-dynamic": of(0.0)} for name in ours}
    path = list(by_worth(ours, dict.fromkeys(ours, OPTIONS), alone))
    assert kinds(path[1]) == ["int8-dynamic", "int4"]


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [(20.0, ["fp32", "fp32", "int4"]), (5.0, ["fp32", "int8-dynamic", "int4"]), (0.01, ["int4"] * 3)],
)
def test_where_matrices_lose_more_or_less_together_than_alone_the_measurement_has_the_last_word(
    factor: float, wanted: list[str]
) -> None:
    ours = linears(32, 32, 32)
    made = mix(
        ours, dict.fromkeys(ours, OPTIONS), ALONE, budget=0.01, measure=lambda each: additive(each, factor)
    )
    assert made.measured.kl <= 0.01 and made.measured == additive(made.schemes, factor)
    assert kinds(made.schemes) == wanted


def test_few_whole_schemes_are_measured_and_the_last_that_fits_comes_back() -> None:
    ours = linears(*[32] * 28)
    alone = {name: {"int4": of(0.01 + i), "int8-dynamic": of(0.001)} for i, name in enumerate(ours)}
    measured: list[float] = []

    def measure(schemes: Mapping[str, MatrixScheme]) -> Damage:
        measured.append(sum(2.0 for kind in kinds(schemes) if kind == "int4"))
        return of(measured[-1])

    made = mix(ours, dict.fromkeys(ours, OPTIONS), alone, budget=11.0, measure=measure)
    assert kinds(made.schemes).count("int4") == 5 and made.measured.kl == 10.0
    assert made.measurements == len(measured) <= 8


def test_what_is_there_before_any_matrix_counts_in_the_forecast() -> None:
    ours = linears(32, 32, 32)
    many = dict.fromkeys(ours, OPTIONS)
    alone = mix(ours, many, ALONE, budget=0.01, measure=additive)
    beside = mix(ours, many, ALONE, budget=0.01, measure=lambda s: of(additive(s).kl + 0.006), first=0.006)
    assert kinds(alone.schemes) == ["int8-dynamic", "int4", "int4"]
    assert kinds(beside.schemes) == ["int8-dynamic", "int8-dynamic", "int4"]
    assert beside.predicted == pytest.approx(beside.measured.kl)


def test_in_the_end_everything_stays_as_it_is() -> None:
    ours = linears(32, 32)
    alone = {name: ALONE[name] for name in ours}

    def never(schemes: Mapping[str, MatrixScheme]) -> Damage:
        return of(0.0 if set(kinds(schemes)) == {"fp32"} else 1.0)

    made = mix(ours, dict.fromkeys(ours, OPTIONS), alone, budget=0.0, measure=never)
    assert kinds(made.schemes) == ["fp32", "fp32"] and made.measured.kl == 0.0


def test_where_nothing_fits_the_last_comes_back_with_what_it_measured() -> None:
    ours = linears(32, 32)
    alone = {name: ALONE[name] for name in ours}
    made = mix(ours, dict.fromkeys(ours, OPTIONS), alone, budget=0.1, measure=lambda _: of(0.5), first=0.5)
    assert kinds(made.schemes) == ["fp32", "fp32"] and made.measured.kl == 0.5 == made.predicted
