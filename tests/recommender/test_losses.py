"""Losses against closed forms and against each other."""

import math

import pytest
import torch
from torch.nn import functional

from recommender.losses import CHUNK, full_softmax, gbce, kl_softmax, sampled_softmax
from recommender.training.objective import catalogue_loss


def problem(n: int = 2 * CHUNK + 3, items: int = 37, width: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(items + 1, width, generator=generator, dtype=torch.float64, requires_grad=True)
    return states, table, torch.randint(1, items + 1, (n,), generator=generator)


def test_full_softmax_equals_cross_entropy_in_value_and_gradients() -> None:
    states, table, targets = problem()
    ours = full_softmax(states, table, targets)
    theirs = functional.cross_entropy(states @ table[1:].T, targets - 1, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    for got, want in zip(
        torch.autograd.grad(ours, (states, table)), torch.autograd.grad(theirs, (states, table)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_full_softmax_leaves_a_frozen_table_alone() -> None:
    states, table, targets = problem()
    full_softmax(states, table.detach(), targets).backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    assert table.grad is None


def test_full_softmax_of_equal_scores_is_log_of_catalogue() -> None:
    total = full_softmax(torch.zeros(4, 3), torch.randn(21, 3), torch.tensor([1, 2, 3, 20]))
    assert total.item() == pytest.approx(4 * math.log(20), rel=1e-6)


def test_sampled_softmax_over_all_items_is_the_full_softmax() -> None:
    states, table, targets = problem()
    everything = torch.arange(1, len(table))
    torch.testing.assert_close(
        sampled_softmax(states, table, targets, everything), full_softmax(states, table, targets)
    )


def test_gbce_with_t_zero_is_bce_and_zero_scores_give_closed_form() -> None:
    states, table, targets = problem()
    negatives = torch.randint(1, len(table), (len(states), 4), generator=torch.Generator().manual_seed(0))
    positive = (states * table[targets]).sum(1)
    others = torch.einsum("nd,nkd->nk", states, table[negatives])
    bce = functional.softplus(-positive) + functional.softplus(others).sum(1)
    torch.testing.assert_close(gbce(states, table, targets, negatives, t=0.0), (bce / 5).sum())
    one = gbce(torch.zeros(1, 5), torch.zeros(38, 5), targets[:1], negatives[:1, :1], t=0.0)
    assert one.item() == pytest.approx(math.log(2), rel=1e-6)  # (ln 2 + ln 2) / (K + 1)


def test_gbce_does_not_depend_on_t_when_all_others_are_negatives() -> None:
    states, table, targets = problem(n=6)
    others = torch.stack(
        [torch.tensor([r for r in range(1, len(table)) if r != t]) for t in targets.tolist()]
    )
    torch.testing.assert_close(
        gbce(states, table, targets, others, t=0.9), gbce(states, table, targets, others, t=0.0)
    )


def test_kl_is_zero_for_the_same_model_and_matches_brute_force() -> None:
    states, table, _ = problem(n=CHUNK + 5)
    assert kl_softmax(states, table, states, table, 2.0).item() == pytest.approx(0, abs=1e-9)
    other = torch.randn(len(states), 3, dtype=torch.float64)
    other_table = torch.randn(len(table), 3, dtype=torch.float64)
    p = (other @ other_table[1:].T / 2).log_softmax(1)
    q = (states @ table[1:].T / 2).log_softmax(1)
    torch.testing.assert_close(
        kl_softmax(states, table, other, other_table, 2.0), (p.exp() * (p - q)).sum() * 4
    )


@pytest.mark.parametrize("loss", ["full-softmax", "sampled-softmax", "gbce"])
def test_every_loss_falls_when_it_is_descended(loss: str) -> None:
    states, table, targets = problem()

    def value(at: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)  # the same negatives each time
        return catalogue_loss(at, table, targets, loss=loss, negatives=8)  # type: ignore[arg-type]

    (slope,) = torch.autograd.grad(value(states), states)
    assert value(states - 0.1 * slope) < value(states)


@pytest.mark.parametrize("loss", ["full-softmax", "sampled-softmax", "gbce", "kl"])
def test_autocast_does_not_make_a_loss_coarser(loss: str) -> None:
    states, table, targets = (part.float() if part.is_floating_point() else part for part in problem())

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        if loss == "kl":
            return kl_softmax(states, table, states + 1e-3, table, 1.0)
        return catalogue_loss(states, table, targets, loss=loss, negatives=8)  # type: ignore[arg-type]

    plain = value()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(value(), plain)
