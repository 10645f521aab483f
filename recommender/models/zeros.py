"""Zeros of a body's matrices that training must not fill: gradients and weights are masked at every step.

A zero weight would not stay one by itself: its gradient is not zero, and momentum goes on moving it. The
masks are what is zero when training starts, so a training that goes on from a saved state has the same ones.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from recommender.errors import InputError
from recommender.models.interface import Body, SequentialRecommender
from recommender.models.linears import Linear, body_linears
from recommender.sparsity import Sparsity


class HeldZeros:
    """Where some matrices of a body are zero, taken down when this is made.

    A weight that has been rounded to 0 is held like one that was pruned.
    """

    def __init__(self, linears: Iterable[Linear]) -> None:
        self._zero: dict[nn.Module, Tensor] = {}
        for each in linears:
            weight = each.module.weight
            assert isinstance(weight, Tensor)
            self._zero[each.module] = weight.detach() == 0

    def of(self, module: nn.Module) -> Tensor | None:
        """bool, as the module's weight lies and where it lies: True = zero. None: nothing of it is held."""
        zero = self._zero.get(module)
        if zero is None:
            return None
        weight = module.weight
        assert isinstance(weight, Tensor)
        if zero.device != weight.device:
            zero = self._zero[module] = zero.to(weight.device)
        return zero

    def mask_gradients(self) -> None:
        """No gradient at the zeros: neither clipping nor a moment of the optimizer sees one."""
        for weight, zero in self._held():
            if weight.grad is not None:
                weight.grad.masked_fill_(zero, 0)

    def mask_weights(self) -> None:
        """What an optimizer's step has filled is zero again."""
        for weight, zero in self._held():
            weight.detach().masked_fill_(zero, 0)

    def _held(self) -> Iterable[tuple[nn.Parameter, Tensor]]:
        for module in self._zero:
            zero = self.of(module)
            assert zero is not None
            yield trained_weight(module), zero


def trained_weight(module: nn.Module) -> nn.Parameter:
    """The parameter behind a matrix: its weight, or what a parametrization (a grid) makes its weight of."""
    if parametrize.is_parametrized(module, "weight"):
        original = module.parametrizations.weight.original  # type: ignore[union-attr]
    else:
        original = module.weight
    assert isinstance(original, nn.Parameter)
    return original


def held_zeros(model: SequentialRecommender, note: Sparsity | None, where: str) -> HeldZeros | None:
    """The zeros that a checkpoint's note speaks of, to be held; None without a note.

    To be made before adapters are added. Raises InputError as `check_zeros` does.
    """
    check_zeros(model, note, where)
    if note is None:
        return None
    linears = body_linears(model.bodies()["user"])
    return HeldZeros(linears[name] for name in note.matrices)


def check_zeros(model: SequentialRecommender, note: Sparsity | None, where: str) -> None:
    """Hold a checkpoint's weights against its note of zeros; without a note there is nothing to hold.

    `where`: the checkpoint, for the message. Raises InputError where a matrix that the note names is not
    there or has fewer zeros, or where they no longer lie 2:4 though the note says so.
    """
    if note is None:
        return
    found = measure(model.bodies()["user"], note, where)
    filled = [name for name, share in note.matrices.items() if found.matrices[name] < share - 1e-9]
    if filled:
        raise InputError(
            f"{filled[0]} has {found.matrices[filled[0]]:.1%} zeros, but the checkpoint notes "
            f"{note.matrices[filled[0]]:.1%}: something has filled them",
            where=where,
            fix=MEND,
        )
    if note.pattern == "2:4" and found.pattern != "2:4":
        raise InputError(
            "the zeros do not lie 2:4, as the checkpoint notes: something has moved them",
            where=where,
            fix=MEND,
        )


MEND = (
    "take the checkpoint as the stage sparsify wrote it, or delete `sparsity` below `about` in its "
    "config.json: then it counts as dense, and can be pruned again"
)


def measure(body: Body, note: Sparsity, where: str = "sparsity") -> Sparsity:
    """The note with the exact zeros and the pattern that are there now.

    Raises InputError for a matrix that is not there; `where`: the checkpoint, for the message.
    """
    linears = body_linears(body)
    if missing := [name for name in note.matrices if name not in linears]:
        raise InputError(
            f"the checkpoint notes zeros of {missing[0]}, which its body does not have", where=where, fix=MEND
        )
    zeros = {name: zeros_in(each.matrix()) for name, each in linears.items()}
    structured = all(is_2_to_4(linears[name].matrix()) for name in note.matrices)
    return note.model_copy(
        update={
            "pattern": "2:4" if structured else "unstructured",
            "matrices": {name: zeros[name] / linears[name].matrix().numel() for name in note.matrices},
            "zeros": sum(zeros.values()),
            "weights": sum(each.matrix().numel() for each in linears.values()),
        }
    )


def is_2_to_4(weight: Tensor) -> bool:
    """Whether no aligned group of 4 inputs holds more than 2 weights that are not zero; weight [out, in]."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())


def zeros_in(matrix: Tensor) -> int:
    """How many entries are exactly zero."""
    return int((matrix == 0).sum())
