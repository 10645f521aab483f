"""The losses of SLMRec (Xu et al., ICLR 2025, arXiv 2405.17890) on lists of hidden states.

Two forms exist and differ by more than a factor. `paper` (the equations): means over blocks and a squared
norm. `code` (the published trainer): sums over blocks and a plain norm. Their published weights (1, 0.1,
1) look the same, so a form is always named. All terms are SUMS over the N positions given.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recommender.errors import InputError

Form = Literal["paper", "code"]
NormKind = Literal["squared", "l2"]

NORM_OF_FORM: dict[Form, NormKind] = {"paper": "squared", "code": "l2"}
"""Which norm each form measures the distance of states with."""


def aligned_blocks(layers: int, blocks: int) -> list[int]:
    """How many layers stand before each of the `blocks` places of comparison: k * layers / blocks.

    The published code rounds down instead (3 layers in 4 blocks then compares the inputs four times, 5 layers
    never compare the last one). Raises InputError when blocks does not divide layers.
    """
    if blocks < 1 or layers < 1 or layers % blocks:
        divisors = [str(number) for number in range(1, layers + 1) if layers % number == 0]
        raise InputError(
            f"{layers} layers cannot be cut into {blocks} blocks of equal size",
            where="distill.blocks",
            fix=f"choose a number of blocks that divides {layers}: {', '.join(divisors)}",
        )
    return [number * (layers // blocks) for number in range(1, blocks + 1)]


def cosine_term(student: Sequence[Tensor], teacher: Sequence[Tensor], form: Form) -> Tensor:
    """1 - cos(student, teacher) of B pairs of states [N, H], summed over N; per position in [0, 2] (paper).

    Invariant to positive scaling of either side. Differs from 1 - D_cos of the paper only by the sum over N.
    """
    distances = [1.0 - functional.cosine_similarity(s, t, dim=-1) for s, t in _pairs(student, teacher)]
    return _over_blocks(distances, form).sum()


def norm_term(
    student: Sequence[Tensor], teacher: Sequence[Tensor], form: Form, kind: NormKind | None = None
) -> Tensor:
    """Distance of B pairs of states [N, H], summed over N; `kind` replaces the form's own norm."""
    kind = kind or NORM_OF_FORM[form]
    differences = [s - t for s, t in _pairs(student, teacher)]
    if kind == "squared":
        return _over_blocks([difference.square().sum(-1) for difference in differences], form).sum()
    return _over_blocks([torch.linalg.vector_norm(d, dim=-1) for d in differences], form).sum()


def supervision_term(losses: Sequence[Tensor], form: Form) -> Tensor:
    """Multi-supervision: the cross-entropies of the B - 1 inner blocks, averaged (paper) or summed (code)."""
    return _over_blocks(losses, form)


def _pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Float32 pairs: half precision loses the norms, which differ by orders of magnitude between blocks."""
    if len(student) != len(teacher) or not student:
        raise ValueError(f"{len(student)} states of the student against {len(teacher)} of the teacher")
    return [(_exact(s), _exact(t)) for s, t in zip(student, teacher, strict=True)]


def _exact(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _over_blocks(values: Sequence[Tensor], form: Form) -> Tensor:
    stacked = torch.stack(list(values))
    return stacked.mean(0) if form == "paper" else stacked.sum(0)
