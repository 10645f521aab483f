"""The SLMRec losses against values computed by hand (methods: section 11 of the specification)."""

import math

import pytest
import torch
from torch import Tensor

from compress.distill.slmrec import aligned_blocks, cosine_term, norm_term, supervision_term
from recommender.errors import InputError

STUDENT = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])]
TEACHER = [torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [2.0, 2.0]])]


def random_states(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(7, 6, generator=generator) for _ in range(3)]


def test_golden_value_of_the_code_form() -> None:
    users = 2
    cosine = float(cosine_term(STUDENT, TEACHER, "code")) / users
    norm = float(norm_term(STUDENT, TEACHER, "code")) / users
    assert cosine == pytest.approx(0.5, abs=1e-7)
    assert norm == pytest.approx(1.20710678 + 0.70710678, abs=1e-7)
    assert 1.0 * cosine + 0.1 * norm == pytest.approx(0.69142136, abs=1e-7)


def test_golden_value_of_the_paper_form() -> None:
    users = 2
    cosine = float(cosine_term(STUDENT, TEACHER, "paper")) / users
    norm = float(norm_term(STUDENT, TEACHER, "paper")) / users
    assert cosine == pytest.approx(0.25, abs=1e-7)
    assert norm == pytest.approx(1.25, abs=1e-7)
    assert 1.0 * cosine + 0.1 * norm == pytest.approx(0.375, abs=1e-7)


def test_code_form_is_blocks_times_the_paper_form_for_equal_measures() -> None:
    student, teacher = random_states(0), random_states(1)
    assert float(cosine_term(student, teacher, "code")) == pytest.approx(
        3 * float(cosine_term(student, teacher, "paper")), rel=1e-5
    )
    assert float(norm_term(student, teacher, "code", "squared")) == pytest.approx(
        3 * float(norm_term(student, teacher, "paper")), rel=1e-5
    )
    assert float(norm_term(student, teacher, "paper", "l2")) == pytest.approx(
        float(norm_term(student, teacher, "code")) / 3, rel=1e-5
    )


@pytest.mark.parametrize("form", ["paper", "code"])
def test_terms_vanish_for_a_student_equal_to_its_teacher(form: str) -> None:
    states = random_states(0)
    assert float(cosine_term(states, states, form)) == pytest.approx(0.0, abs=1e-5)  # type: ignore[arg-type]
    for kind in ("squared", "l2"):
        assert float(norm_term(states, states, form, kind)) == 0.0  # type: ignore[arg-type]


def test_l2_norm_has_a_finite_gradient_where_it_is_zero() -> None:
    student = [state.clone().requires_grad_() for state in STUDENT]
    norm_term(student, TEACHER, "code").backward()
    assert all(state.grad is not None and torch.isfinite(state.grad).all() for state in student)


def test_cosine_ignores_positive_scaling_of_either_side_and_norm_does_not() -> None:
    student, teacher = random_states(0), random_states(1)
    scaled = [5.0 * state for state in student]
    expected = float(cosine_term(student, teacher, "paper"))
    assert float(cosine_term(scaled, teacher, "paper")) == pytest.approx(expected, abs=1e-5)
    assert float(cosine_term(teacher, scaled, "paper")) == pytest.approx(expected, abs=1e-5)
    assert float(norm_term(scaled, teacher, "paper")) > 2 * float(norm_term(student, teacher, "paper"))


def test_cosine_lies_between_zero_and_two_per_position_and_block() -> None:
    student = random_states(0)
    opposite = [-state for state in student]
    assert float(cosine_term(student, opposite, "paper")) == pytest.approx(2.0 * 7, rel=1e-6)
    assert float(cosine_term(student, opposite, "code")) == pytest.approx(2.0 * 7 * 3, rel=1e-6)


def test_terms_are_computed_in_single_precision_for_half_inputs_and_keep_double() -> None:
    student = [300.0 * state for state in random_states(0)]
    teacher = random_states(1)
    half = norm_term([s.half() for s in student], [t.half() for t in teacher], "paper")
    assert half.dtype == torch.float32 and math.isfinite(float(half))  # 300^2 x 6 does not fit in half
    double = cosine_term([s.double() for s in student], [t.double() for t in teacher], "paper")
    assert double.dtype == torch.float64


def test_supervision_is_the_mean_over_inner_blocks_in_the_paper_and_the_sum_in_the_code() -> None:
    losses = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(6.0)]
    assert float(supervision_term(losses, "paper")) == 3.0
    assert float(supervision_term(losses, "code")) == 9.0


@pytest.mark.parametrize(
    ("layers", "blocks", "expected"),
    [(4, 4, [1, 2, 3, 4]), (8, 4, [2, 4, 6, 8]), (12, 4, [3, 6, 9, 12]), (6, 1, [6])],
)
def test_compared_places_end_each_block(layers: int, blocks: int, expected: list[int]) -> None:
    assert aligned_blocks(layers, blocks) == expected


@pytest.mark.parametrize(("layers", "blocks"), [(3, 4), (5, 4), (7, 4), (4, 0)])
def test_blocks_that_do_not_divide_the_layers_are_refused(layers: int, blocks: int) -> None:
    with pytest.raises(InputError, match=f"{layers} layers cannot be cut into {blocks} blocks") as caught:
        aligned_blocks(layers, blocks)
    assert "divides" in str(caught.value)


def test_different_numbers_of_states_are_refused() -> None:
    with pytest.raises(ValueError, match="1 states of the student against 2"):
        cosine_term(STUDENT[:1], TEACHER, "paper")
