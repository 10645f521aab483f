"""LLM-Pruner's importance of neurons, heads and channels: what the model's own loss would lose with them.

Only training rows are read: the targets are the next items inside a history, never the held-out ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.calibration import Calibration, device_of
from compress.narrowing.activation import Importance
from compress.narrowing.cut import Place, places, segments
from compress.narrowing.layout import Layout, Structure, Widths
from compress.narrowing.scores import first_order, second_order, sum_along
from recommender.errors import InputError
from recommender.losses import full_softmax
from recommender.models.interface import History
from recommender.models.llm import LlmRecommender


def taylor_importance(
    model: LlmRecommender, layout: Layout, widths: Widths, calibration: Calibration, *, order: int
) -> Importance:
    """LLM-Pruner's scores from the gradient of the model's own loss, the full softmax of the next item.

    First order: |w dL/dw|, L the mean over all next items of the histories. Second order: w^2 times the mean
    over users of the squared gradient of that user's mean loss (one backward pass per user). Summed over the
    coupled rows and columns of a member: matrices, biases, position tables and projections; norms are left
    out. Raises InputError when no history has a second item.
    """
    where = places(model, layout)
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(where[name].axes) and not _of_norm(name, where[name], layout)
    }
    measured = (_mean_gradient if order == 1 else _mean_square)(model, weights, calibration)
    salience = first_order if order == 1 else second_order
    blocks: list[dict[Structure, Tensor]] = [_nothing(widths) for _ in model.body.blocks]
    hidden = torch.zeros(widths.hidden, dtype=torch.float64)
    for name, parameter in weights.items():
        place = where[name]
        into: dict[Structure, Tensor] = {"hidden": hidden}
        if place.block is not None:
            into |= blocks[place.block]
        _add_salience(into, salience(parameter.detach(), measured[name]).cpu(), place, widths)
    return Importance(hidden, blocks)


def _nothing(widths: Widths) -> dict[Structure, Tensor]:
    sizes: dict[Structure, int] = {"ffn": widths.ffn, "heads": widths.heads, "kv": widths.kv_heads}
    return {structure: torch.zeros(size, dtype=torch.float64) for structure, size in sizes.items()}


def _of_norm(name: str, place: Place, layout: Layout) -> bool:
    """True for weights and biases of norms: vectors along the stream that no matrix owns."""
    owners = (*layout.matrices, "input_projection")
    return place.axes == ("hidden",) and not name.rpartition(".")[0].endswith(owners)


def _add_salience(into: Mapping[Structure, Tensor], salience: Tensor, place: Place, widths: Widths) -> None:
    """Give every member that lies along an axis the salience of its rows or columns."""
    for number, axis in enumerate(place.axes):
        if axis is None:
            continue
        along, start = sum_along(salience, number), 0
        for segment in segments(axis, widths):
            part = along[start : start + len(segment.members)]
            into[segment.structure].index_add_(0, segment.members, part)
            start += len(segment.members)
        assert start == len(along)


def _mean_gradient(
    model: LlmRecommender, weights: Mapping[str, Tensor], calibration: Calibration
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    targets = 0
    for history, _ in calibration.batches(device_of(model)):
        loss, count = next_item_loss(model, history.items)
        if count:
            _accumulate(total, _gradients(loss, weights))
            targets += count
    if not targets:
        raise _no_targets()
    return {name: value / targets for name, value in total.items()}


def _mean_square(
    model: LlmRecommender, weights: Mapping[str, Tensor], calibration: Calibration
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    users = 0
    for history, _ in calibration.batches(device_of(model)):
        for row in history.items:
            loss, count = next_item_loss(model, row[row != 0].unsqueeze(0))
            if count:
                gradients = _gradients(loss / count, weights)
                _accumulate(total, {name: value.square() for name, value in gradients.items()})
                users += 1
    if not users:
        raise _no_targets()
    return {name: value / users for name, value in total.items()}


def _no_targets() -> InputError:
    return InputError(
        "no training history has a second item, so there is no loss to take the gradient of",
        where="prune-width.importance",
        fix="use importance: activation",
    )


def next_item_loss(model: LlmRecommender, items: Tensor) -> tuple[Tensor, int]:
    """(cross-entropy over the catalogue, summed, its number of targets) of rows [B, L]: each item predicts
    the next; with a prompt behind the items only the last one does, as no other reads it.
    """
    inputs, targets = items[:, :-1], items[:, 1:]
    wanted = inputs != 0
    if len(model.suffix):
        wanted[:, :-1] = False
    if not wanted.any():
        return items.new_zeros((), dtype=torch.float32), 0
    hidden = model.hidden(History(inputs))
    user, position = wanted.nonzero(as_tuple=True)
    states = hidden.final[user, hidden.at[user, position]]
    loss = full_softmax(model.project(states), model.item_table(), targets[user, position])
    return loss, len(user)


def _gradients(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True))


def _accumulate(total: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        total[name] = total[name] + value if name in total else value.clone()
