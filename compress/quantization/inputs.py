"""What the matrices of a model are multiplied with on real histories; padding is left out.

All positions of the sampled training histories count, also in the last block and behind it, which are served
for the last position only: more inputs of the same kind.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from compress.calibration import Calibration, at_items, device_of
from compress.finite import check_seen
from compress.gram import gram
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.models.linears import PROJECTIONS, Linear, watched

BINS = 4096


def hessians(
    model: SequentialRecommender, linears: Mapping[str, Linear], calibration: Calibration
) -> dict[str, Tensor]:
    """{name: 2/n sum x x^T [in, in], float64} over the inputs of each matrix.

    Runs no block behind the last of these matrices.
    """
    sums: dict[str, Tensor] = {}
    seen = dict.fromkeys(linears, 0)
    for inputs in _batches(model, linears, calibration):
        for name, rows in inputs.items():
            sums[name] = sums.get(name, 0.0) + gram(rows)
            seen[name] += len(rows)
    return {name: 2.0 / seen[name] * total for name, total in sums.items()}


def largest_inputs(
    model: SequentialRecommender,
    linears: Mapping[str, Linear],
    calibration: Calibration,
    *,
    percentile: float = 100.0,
) -> dict[str, float]:
    """{name: the magnitude below which `percentile` percent of the numbers in its inputs lie}.

    100 is min-max. Below it, magnitudes are counted in 4096 equal bins (a second pass), and the upper end of
    the bin is taken. A matrix whose inputs are all 0 gets 1.
    """
    highest: dict[str, float] = dict.fromkeys(linears, 0.0)
    for inputs in _batches(model, linears, calibration):
        for name, rows in inputs.items():
            highest[name] = max(highest[name], float(rows.abs().max()))
    if percentile < 100.0:
        counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in linears}
        for inputs in _batches(model, linears, calibration):
            for name, rows in inputs.items():
                if highest[name]:
                    counted = torch.histc(rows.abs().float().cpu(), BINS, 0.0, highest[name])
                    counts[name] += counted.double()
        for name, count in counts.items():
            share = count.cumsum(0) / count.sum().clamp(min=1)
            below = int((share < percentile / 100.0).sum())
            highest[name] *= min(below + 1, BINS) / BINS
    return {name: value or 1.0 for name, value in highest.items()}


def _batches(
    model: SequentialRecommender, linears: Mapping[str, Linear], calibration: Calibration
) -> Iterator[dict[str, Tensor]]:
    """The inputs [positions, in] of each matrix, one batch after the other.

    Projections are at work where items are: prompts do not pass through them. Raises InputError for inputs
    that are not finite.
    """
    last = max(linear.block for linear in linears.values())
    upto = range(max(1, min(1 + last, len(model.bodies()["user"].blocks))))
    with torch.inference_mode():
        for history, _ in calibration.batches(device_of(model)):
            with _recorded(linears) as inputs:
                hidden = model.hidden(history, blocks=upto)
                if "output_projection" in linears:
                    model.project(at_items(hidden.final, hidden))
            at_items_only = (history.items != 0).reshape(-1)
            everywhere = real_positions(history, hidden).reshape(-1)
            real = {
                name: rows.reshape(-1, rows.shape[-1])[at_items_only if name in PROJECTIONS else everywhere]
                for name, rows in inputs.items()
            }
            for name, rows in real.items():
                check_seen(rows, f"the inputs of {name}", where="quantize.of")
            yield real


@contextmanager
def _recorded(linears: Mapping[str, Linear]) -> Iterator[dict[str, Tensor]]:
    """{name: what it was called with}, filled while open."""
    inputs: dict[str, Tensor] = {}

    def see(linear: Linear, given: Tensor) -> None:
        inputs[linear.name] = given

    with watched(linears, see):
        yield inputs


def real_positions(history: History, hidden: Hidden) -> Tensor:
    """bool [B, T]: all positions of the stream, prompts among them, but those where padding is read."""
    batch, length = hidden.entry.shape[:2]
    real = torch.ones(batch, length, dtype=torch.bool, device=history.items.device)
    padding = history.items == 0
    users = torch.arange(batch, device=real.device)[:, None].expand_as(padding)
    real[users[padding], hidden.at[padding]] = False
    return real
