"""Logit distillation against the plain formula."""

import copy

import pytest
import torch

from compress.distill.logits import LogitMatching
from compress.distill.objective import Distillation, Side
from recommender.losses import full_softmax
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.models.interface import History, SequentialRecommender

from .test_objective import batch, llm


def objective(
    student: SequentialRecommender, teacher: SequentialRecommender, temperature: float
) -> Distillation:
    return Distillation(
        student,
        loss=full_softmax,
        weights={"ce": 0.25, "kd": 0.75},
        terms=LogitMatching(temperature=temperature),
        teacher=teacher,
    )


def narrow_teacher() -> SequentialRecommender:
    """Another architecture, another width, another item table; only the catalogue is shared."""
    return build_model(SasrecConfig(layers=3, hidden=12, dropout=0.0), n_items=30, max_length=6, seed=3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_term_is_the_scaled_divergence_over_the_whole_catalogue(temperature: float) -> None:
    student, teacher, given = llm(2, 1), narrow_teacher().eval(), batch()
    got = {name: value.detach() for name, value in objective(student, teacher, temperature)(given).items()}
    real = given.targets != 0
    logits = [
        model.project(model.hidden(History(given.items)).final[real]) @ model.item_table()[1:].T / temperature
        for model in (student, teacher)
    ]
    p, q = logits[1].softmax(1), logits[0].softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum()
    assert float(got["kd"]) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(got["loss"]) == pytest.approx(0.25 * float(got["ce"]) + 0.75 * float(got["kd"]), rel=1e-5)


def test_term_is_zero_for_equal_models() -> None:
    student, given = llm(2, 1), batch()
    assert float(objective(student, copy.deepcopy(student), 2.0)(given)["kd"]) == pytest.approx(0.0, abs=1e-4)


def test_gradients_reach_the_student_only() -> None:
    student, teacher = llm(2, 1), narrow_teacher()
    objective(student, teacher, 2.0)(batch())["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.body.blocks[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_gradient_keeps_its_scale_when_the_temperature_varies() -> None:
    """Near zero logits T^2 KL is the same quadratic for every T; without T^2 it would shrink 25-fold."""
    student, teacher, given = llm(2, 1), narrow_teacher(), batch()
    with torch.no_grad():
        for model in (student, teacher):
            model.item_table().mul_(0.05)
    kd, sizes = LogitMatching(temperature=1.0), []
    for temperature in (1.0, 5.0):
        student.zero_grad()
        kd.temperature = temperature
        kd(Side.of(student, given), Side.of(teacher, given))["kd"].backward()
        sizes.append(float(student.output_projection.weight.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_matching_the_teacher_alone_makes_the_student_rank_alike() -> None:
    student, teacher, given = llm(2, 1), narrow_teacher().eval(), batch(users=12)
    with torch.no_grad():
        teacher.item_table().mul_(5)  # a random teacher is nearly indifferent
    terms = LogitMatching(temperature=1.0)
    kd = Distillation(
        student, loss=full_softmax, weights={"ce": 0.0, "kd": 1.0}, terms=terms, teacher=teacher
    )
    optimizer = torch.optim.AdamW(kd.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = kd(given)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    history = History(given.items)
    ours, theirs = (
        (model.user_vector(history) @ model.item_table()[1:].T).topk(5).indices
        for model in (student, teacher)
    )
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    assert losses[-1] < 0.1 * losses[0]
    assert sum(shared) / len(shared) > 0.7
