"""What distillation minimises: the student's own loss plus terms that look at a frozen teacher.

Every active term is reported under its own name and must be alive at the first step: the published SLMRec
trainer swallows an exception and silently trains on the plain loss instead.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from recommender.errors import StageError
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.training.batches import Batch
from recommender.training.objective import at_targets

CatalogueLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(user vectors [N, D], item table [n_items + 1, D], target rows [N]) -> loss summed over N."""


DEAD = 2e-7
"""A term below this, per position, is zero but for rounding (1 - cos of equal vectors in float32)."""


class Side(NamedTuple):
    """One model's pass over a micro-batch, read where the batch has a target (N positions)."""

    hidden: Hidden
    batch: Batch
    targets: Tensor  # [N] rows
    vectors: Tensor  # [N, D] projected final states
    table: Tensor  # [n_items + 1, D]

    def after(self, layers: int) -> Tensor:
        """States [N, H] after so many blocks: the raw stream, or the normed one after the last block."""
        whole = layers == len(self.hidden.blocks)
        states = self.hidden.final if whole else self.hidden.blocks[layers - 1]
        return at_targets(states, self.hidden, self.batch)[0]

    @classmethod
    def of(cls, model: SequentialRecommender, batch: Batch) -> Self:
        """Run a model."""
        hidden = model.hidden(History(batch.items, times=batch.times))
        states, targets = at_targets(hidden.final, hidden, batch)
        return cls(hidden, batch, targets, model.project(states), model.item_table())


class Distillation(nn.Module):
    """loss = sum of weight x term; terms: "ce" of the student, and those that `terms` makes of both sides.

    `terms(student, teacher)` returns {name: sum over the positions}. Its parameters (auxiliary heads) are
    trained and left behind; those of the teacher are not part of this module, never trained, and seen in
    eval mode without gradients. Positions are those with a target, for every term alike; the batches say
    which (all, or the last).
    """

    def __init__(
        self,
        student: SequentialRecommender,
        *,
        loss: CatalogueLoss,
        weights: Mapping[str, float],
        terms: nn.Module | None = None,
        teacher: SequentialRecommender | None = None,
    ) -> None:
        """`terms` and `teacher` come together; without them the loss is plain cross-entropy."""
        super().__init__()
        if (terms is None) != (teacher is None):
            raise ValueError("terms need a teacher, and a teacher is of no use without terms")
        self.student, self.loss, self.terms = student, loss, terms
        self.weights = dict(weights)
        self._teacher = () if teacher is None else (teacher.eval(),)  # a tuple hides it from nn.Module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the teacher, too, wherever `.to`, `.cpu` or `.double` move the student."""
        for teacher in self._teacher:
            teacher._apply(fn)  # type: ignore[no-untyped-call]
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"loss", "ce", ...}: sums over the batch's positions; only "loss" carries gradients."""
        student = Side.of(self.student, batch)
        values = {"ce": self.loss(student.vectors, student.table, student.targets)}
        for teacher in self._teacher:
            assert self.terms is not None
            with torch.no_grad():
                theirs = Side.of(teacher, batch)
            values |= self.terms(student, theirs)
        weighted = [self.weights[name] * value for name, value in values.items() if self.weights[name] > 0]
        logged = {name: value.detach() for name, value in values.items()}
        return {"loss": torch.stack(weighted).sum(), **logged}

    def check_first(self, terms: Mapping[str, float]) -> None:
        """Raise StageError, naming the term, if an active one is missing, zero, NaN or infinite."""
        for name, weight in self.weights.items():
            value = terms.get(name)
            if weight > 0 and (value is None or not math.isfinite(value) or abs(value) < DEAD):
                state = "missing" if value is None else f"{value:g}"
                raise StageError(
                    f"the distillation term {name!r} (weight {weight:g}) is {state} at the first step, so "
                    "nothing would be learnt from it",
                    where="distill",
                    fix=f"give {name!r} the weight 0 if that is meant; 0: student and teacher are the same; "
                    "nan or inf: one of them is broken",
                )
