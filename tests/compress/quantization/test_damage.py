"""Divergence is never negative, 0 where nothing changed, and what the formula says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.calibration import Calibration
from compress.quantization import damage as module
from compress.quantization.damage import Answers, answers, damage, ndcg_change
from recommender.checkpoint import load_checkpoint
from recommender.stage import Bound

from ..conftest import MakeContext

ITEMS, WIDTH = 30, 6


def made(users: int, seed: int, scale: float = 1.0) -> tuple[Answers, Calibration]:
    chance = torch.Generator().manual_seed(seed)
    vectors = scale * torch.randn(users, WIDTH, generator=chance)
    table = torch.randn(ITEMS, WIDTH, generator=chance)
    targets = torch.randint(1, ITEMS + 1, (users,), generator=chance).numpy()
    calibration = Calibration(np.ones((users, 2), np.int64), targets, np.arange(users))
    return Answers(vectors, table), calibration


@settings(max_examples=50, deadline=None)
@given(users=st.integers(1, 20), seed=st.integers(0, 1000), noise=st.floats(0, 100), scale=st.floats(0, 300))
def test_it_is_never_negative_and_zero_for_the_same_answers(
    users: int, seed: int, noise: float, scale: float
) -> None:
    before, calibration = made(users, seed, scale)
    moved = Answers(before.vectors + noise * torch.randn(users, WIDTH), before.table)
    found = damage(before, moved, calibration)
    assert 0 <= found.kl < float("inf")
    same = damage(before, before, calibration)
    assert same.kl == 0 == same.loss_rise


def test_it_is_what_the_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before, calibration = made(9, seed=1)
    after = Answers(before.vectors * 0.7, before.table + 0.1 * torch.randn(ITEMS, WIDTH))
    p, q = ((each.vectors.double() @ each.table.double().T).softmax(1) for each in (before, after))
    kl = (p * (p / q).log()).sum(1)
    rows = torch.arange(9), torch.from_numpy(calibration.targets) - 1
    rise = p[rows].log() - q[rows].log()
    whole = damage(before, after, calibration)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2 * ITEMS)  # in slices of two users
    for found in (whole, damage(before, after, calibration)):
        assert found.kl == pytest.approx(float(kl.mean()), rel=1e-5)
        assert found.kl_error == pytest.approx(float(kl.std()) / 3, rel=1e-5)
        assert found.loss_rise == pytest.approx(float(rise.mean()), rel=1e-4)
        assert found.loss_rise_error == pytest.approx(float(rise.std()) / 3, rel=1e-5)


def test_answers_are_of_the_last_position_and_stay_when_the_model_changes(
    teacher: Bound, make_context: MakeContext
) -> None:
    from compress.quantization.apply import Work

    model = load_checkpoint(teacher.path)
    work = Work.on(model, make_context("work"), users=60, name="teacher")
    again = answers(model, work.calibration)
    assert torch.equal(again.vectors, work.before.vectors) and work.damage().kl == 0
    with torch.no_grad():
        model.item_table().mul_(1.5)
    assert not torch.equal(model.item_table()[1:], work.before.table)
    assert work.damage().kl > 0


def test_a_change_of_ndcg_is_paired() -> None:
    before, after = np.array([1.0, 0.5, 0.0, 0.0]), np.array([1.0, 0.5, 0.0, 0.4])
    found = ndcg_change(before, after)
    assert found["ndcg@10_before"] == 0.375 and found["ndcg@10_change"] == pytest.approx(0.1)
    assert found["ndcg@10_change_error"] == pytest.approx(0.1)
