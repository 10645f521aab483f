"""Training losses over the catalogue. All return the SUM over positions; callers divide by their number.

States are [N, D] user vectors of real positions only: a padded position in a softmax over the catalogue costs
as much as a real one and teaches nothing.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 64  # positions per slice of logits: 64 x 12k floats are 3 MB, which stays in the caches


P = ParamSpec("P")


class _FullSoftmax(torch.autograd.Function):
    """Cross-entropy whose gradients are made in the forward pass, slice by slice.

    The [N, n_items] logits never exist as a whole, in either direction ("cut cross-entropy", arXiv
    2411.09009, in plain torch).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        total = states.new_zeros(())
        d_states = torch.empty_like(states)
        wanted, table_wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        d_table = torch.zeros_like(table) if table_wanted else None
        for start in range(0, len(states), CHUNK):
            part, gold = states[start : start + CHUNK], targets[start : start + CHUNK]
            logits = part @ table.T
            top = logits.amax(dim=1, keepdim=True)
            gold_logits = logits.gather(1, gold.unsqueeze(1))
            probabilities = logits.sub_(top).exp_()
            mass = probabilities.sum(dim=1, keepdim=True)
            total += (mass.log() + top - gold_logits).sum()
            if wanted or table_wanted:
                probabilities /= mass
                probabilities[torch.arange(len(gold), device=gold.device), gold] -= 1
            if wanted:
                d_states[start : start + CHUNK] = probabilities @ table
            if d_table is not None:
                d_table.addmm_(probabilities.T, part)
        ctx.save_for_backward(d_states if wanted else None, d_table)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_states, d_table = ctx.saved_tensors
        scaled = [None if made is None else made * grads[0] for made in (d_states, d_table)]
        return scaled[0], scaled[1], None


def _uncast(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Switch autocast off inside a loss: it would turn the products back into bf16."""

    @wraps(loss)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        states = args[0]
        assert isinstance(states, Tensor)
        with torch.autocast(states.device.type, enabled=False):
            return loss(*args, **kwargs)

    return inner


@_uncast
def full_softmax(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy over the whole catalogue, summed over positions.

    states [N, D], table [n_items + 1, D] (row 0, padding, is left out), targets [N] rows 1..n_items.
    """
    wide = _wide(states)
    total: Tensor = _FullSoftmax.apply(states.to(wide), table[1:].to(wide), targets - 1)  # type: ignore[no-untyped-call]
    return total


@_uncast
def sampled_softmax(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Softmax over the target and shared `negatives` [K] (rows); a negative equal to the target is left out.

    With every item among the negatives this equals `full_softmax`.
    """
    states, table = states.to(_wide(states)), table.to(_wide(states))
    positive = (states * table[targets]).sum(dim=1, keepdim=True)
    others = states @ table[negatives].T
    others = others.masked_fill(negatives.unsqueeze(0) == targets.unsqueeze(1), -torch.inf)
    return (torch.cat((positive, others), dim=1).logsumexp(dim=1) - positive.squeeze(1)).sum()


@_uncast
def gbce(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, *, t: float) -> Tensor:
    """Generalised binary cross-entropy (gSASRec, Petrov & Macdonald, RecSys 2023), summed over positions.

    negatives [N, K] rows; t in [0, 1] is the calibration: with alpha = K / (n_items - 1), beta = alpha t + 1
    - t. t = 0 is plain BCE. Written as beta * logsigmoid(s), which is stable.
    """
    states, table = states.to(_wide(states)), table.to(_wide(states))
    alpha = negatives.shape[1] / max(len(table) - 2, 1)
    beta = alpha * t + 1 - t
    positive = (states * table[targets]).sum(dim=1)
    others = torch.einsum("nd,nkd->nk", states, table[negatives])
    per_position = beta * functional.logsigmoid(positive) + functional.logsigmoid(-others).sum(dim=1)
    return -per_position.sum() / (negatives.shape[1] + 1)


@_uncast
def kl_softmax(
    student: Tensor, student_table: Tensor, teacher: Tensor, teacher_table: Tensor, temperature: float
) -> Tensor:
    """T^2 KL(teacher || student) over the catalogue at temperature T, summed over positions.

    student [N, D] with its table [n_items + 1, D], teacher [N, D'] with its own; the teacher is detached. T^2
    keeps the gradient's scale when T varies (Hinton et al., 2015).
    """
    total = student.new_zeros((), dtype=_wide(student))
    student_table, teacher_table = (
        student_table[1:].to(_wide(student)),
        teacher_table[1:].detach().to(_wide(student)),
    )
    for start in range(0, len(student), CHUNK):
        ours = student[start : start + CHUNK].to(_wide(student)) @ student_table.T / temperature
        theirs = teacher[start : start + CHUNK].detach().to(_wide(student)) @ teacher_table.T / temperature
        total = total + functional.kl_div(
            ours.log_softmax(dim=1), theirs.log_softmax(dim=1), reduction="sum", log_target=True
        )
    return total * temperature**2


def _wide(states: Tensor) -> torch.dtype:
    """Losses are computed in fp32 at least, whatever the body runs in."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32
