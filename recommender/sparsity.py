"""What a checkpoint says of the zeros in its body: which matrices, of what pattern, how many.

A stage that trains such a checkpoint holds the zeros (`recommender.models.zeros`); one that starts from other
weights makes a checkpoint that says nothing of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from recommender.data.config import Section
from recommender.errors import InputError

ROUNDED = 0.05
"""By how much the zeros of a body may fall short of the share that was asked for: rows round it down."""


class Zeros(NamedTuple):
    """What is known of a body's zeros before anything runs."""

    pattern: Literal["unstructured", "2:4"]
    share: float  # that was asked for, of each pruned matrix
    everywhere: bool = True  # in all matrices; False: in some only, or in others by another share


class Sparsity(Section):
    """The note of a checkpoint, in its `about` under "sparsity"."""

    method: str
    pattern: Literal["unstructured", "2:4"]
    sparsity: float  # that was asked for
    matrices: dict[
        str, float
    ]  # pruned matrix, below the list of blocks ("3.mlp.down_proj") -> share of zeros
    zeros: int  # in all matrices of the body's blocks
    weights: int  # of all matrices of the body's blocks

    @property
    def share(self) -> float:
        """Zeros among the weights of all matrices of the body's blocks."""
        return self.zeros / self.weights

    @property
    def planned(self) -> Zeros:
        """What the recipe check knows of it."""
        return Zeros(self.pattern, self.sparsity, everywhere=abs(self.share - self.sparsity) < ROUNDED)


def noted(about: Mapping[str, Any], where: str) -> Sparsity | None:
    """What a checkpoint's `about` says; None where it says nothing. Raises InputError for a broken note."""
    if about.get("sparsity") is None:
        return None
    try:
        return Sparsity.model_validate(about["sparsity"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("sparsity", *first["loc"])))
        raise InputError(f"broken note of zeros ({place}: {first['msg']})", where=where) from error


def cut(note: Sparsity | None, kept: Sequence[int]) -> Sparsity | None:
    """The note after all blocks but `kept` are gone; None where no pruned matrix is left.

    Blocks are numbered anew. The counts are still those of before: `recommender.models.zeros.measure` tells.
    """
    if note is None:
        return None
    places = {old: new for new, old in enumerate(kept)}
    matrices = {}
    for name, share in note.matrices.items():
        block, _, rest = name.partition(".")
        if int(block) in places:
            matrices[f"{places[int(block)]}.{rest}"] = share
    return note.model_copy(update={"matrices": matrices}) if matrices else None
