"""What flows into the matrices of a body on calibration histories, block by block.

The calls of one block are caught while the model runs up to it, and can then be run again on that block
alone: each matrix is looked at in a pass of its own, so that no more than one large statistic is in memory.
Nothing here is differentiated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibration import Calibration, device_of
from compress.finite import check_seen
from compress.gram import gram
from recommender.errors import StageError
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.models.linears import Linear, watched


@dataclass(frozen=True)
class Call:
    """One call of a block."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    real: Tensor  # bool [B, T]: positions where items are read; padding and prompts are not


def calls_of(model: SequentialRecommender, block: int, calibration: Calibration) -> list[Call]:
    """Every call of a block of the user body on the calibration histories; those behind it do not run."""
    module = model.bodies()["user"].blocks[block]
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append((args, kwargs)), with_kwargs=True
    )
    calls = []
    try:
        with torch.no_grad():
            for history, _ in calibration.batches(device_of(model)):
                hidden = model.hidden(history, blocks=range(block + 1))
                calls.append(Call(*caught.pop(), real_positions(hidden, history)))
    finally:
        handle.remove()
    return calls


def real_positions(hidden: Hidden, history: History) -> Tensor:
    """bool [B, T]: where the items of a history [B, L] are read in the stream."""
    real = torch.zeros(hidden.entry.shape[:2], dtype=torch.bool, device=hidden.at.device)
    return real.scatter(1, hidden.at, history.items != 0)


def show_inputs(
    block: nn.Module,
    calls: Sequence[Call],
    linears: Mapping[str, Linear],
    see: Callable[[Linear, Tensor], None],
) -> None:
    """Run a block on its calls: `see(linear, input [n, in])` for each call of each matrix.

    Inputs are those of real positions only.

    Raises InputError for inputs that are not finite, StageError for a matrix that sees other positions than
    the block, or none.
    """
    seen = set()
    for call in calls:

        def show(linear: Linear, given: Tensor, real: Tensor = call.real) -> None:
            if given.shape[:-1].numel() != real.numel():
                raise StageError(f"{linear.name} sees {list(given.shape)} of {list(real.shape)} positions")
            inputs = given.reshape(-1, given.shape[-1])[real.flatten()]
            check_seen(inputs, f"the inputs of {linear.name}", where="of")
            seen.add(linear.name)
            see(linear, inputs)

        with watched(linears, show), torch.no_grad():
            block(*call.args, **call.kwargs)
    if unseen := [name for name in linears if name not in seen]:
        raise StageError(f"{unseen[0]} is not called as a module, so its inputs cannot be seen")


def input_norms(block: nn.Module, calls: Sequence[Call], linears: Mapping[str, Linear]) -> dict[str, Tensor]:
    """||X_j|| of every column j of the inputs of each matrix, float32 [in]."""
    squares: dict[str, Tensor] = {}

    def see(linear: Linear, inputs: Tensor) -> None:
        added = inputs.double().square().sum(0)
        squares[linear.name] = squares[linear.name] + added if linear.name in squares else added

    show_inputs(block, calls, linears, see)
    return {name: each.sqrt().float() for name, each in squares.items()}


def input_hessian(block: nn.Module, calls: Sequence[Call], linear: Linear) -> Tensor:
    """X^T X / n of the inputs of one matrix, float64 [in, in]."""
    size = linear.matrix().shape[1]
    total = torch.zeros(size, size, dtype=torch.float64, device=linear.matrix().device)
    count = 0

    def see(_: Linear, inputs: Tensor) -> None:
        nonlocal count
        total.add_(gram(inputs))
        count += len(inputs)

    show_inputs(block, calls, {linear.name: linear}, see)
    return total / count


def output_errors(
    block: nn.Module, calls: Sequence[Call], linears: Mapping[str, Linear], changed: Mapping[str, Tensor]
) -> dict[str, float]:
    """||X W^T - X W'^T||_F / ||X W^T||_F of each matrix with its changed weight W' [out, in]."""
    lost, whole = dict.fromkeys(linears, 0.0), dict.fromkeys(linears, 0.0)

    def see(linear: Linear, inputs: Tensor) -> None:
        weight = linear.matrix().float()
        difference = weight - changed[linear.name].float()
        lost[linear.name] += float((inputs.float() @ difference.T).double().square().sum())
        whole[linear.name] += float((inputs.float() @ weight.T).double().square().sum())

    show_inputs(block, calls, linears, see)
    return {name: (lost[name] / whole[name]) ** 0.5 if whole[name] else 0.0 for name in linears}
