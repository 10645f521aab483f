"""How much each matrix loses by itself, and which to hold in how many bits for what that costs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from compress.quantization.rounding import round_in_place, tried
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme, packed_bytes

Rises = dict[str, dict[str, float]]
"""{matrix: {kind: what the validation loss gains when this matrix alone is held so}}."""


def rises(
    linears: Mapping[str, Linear],
    options: Mapping[str, Sequence[MatrixScheme]],
    evaluate: Callable[[], float],
    base: float,
    hessians: Callable[[Mapping[str, Linear]], Mapping[str, Tensor]] = lambda _: {},
) -> Rises:
    """The loss gained by each matrix alone in each of its schemes, against `base`.

    `hessians`: of the inputs of some matrices, for those that GPTQ rounds; others are rounded to nearest. It
    is asked block by block, so that it holds those of one block at a time.
    """
    found: Rises = {}
    for _, block in groupby(options, key=lambda name: linears[name].block):
        names = list(block)
        fed = hessians({name: linears[name] for name in names})
        for name in names:
            found[name] = {}
            for scheme in options[name]:
                with tried(linears, {name: scheme}, partial(round_in_place, linears, hessians=fed)):
                    found[name][scheme.kind] = evaluate() - base
    return found


class Mix(NamedTuple):
    """A mixed scheme and what it is expected and measured to cost."""

    schemes: dict[str, MatrixScheme]
    predicted: float  # sum of the rises of its matrices alone
    measured: float


def mix(
    linears: Mapping[str, Linear],
    options: Mapping[str, Sequence[MatrixScheme]],
    found: Rises,
    *,
    budget: float,
    measure: Callable[[Mapping[str, MatrixScheme]], float],
) -> Mix:
    """The smallest matrices whose rise of the loss stays within `budget`.

    Each matrix starts with its smallest option; the change that saves most loss for the bytes it adds comes
    first (rises are taken as additive). That is a forecast: `measure` has the last word, and more bits are
    given until the measured rise fits, at the end all of them. Options go from small to large; the last one
    costs nothing.
    """
    at = dict.fromkeys(options, 0)

    def rise(name: str, place: int) -> float:
        last = place == len(options[name]) - 1
        return 0.0 if last else max(found[name][options[name][place].kind], 0.0)

    def size(name: str, place: int) -> int:
        rows, width = linears[name].matrix().shape
        return packed_bytes(rows, width, options[name][place])

    def gain(step: tuple[str, int]) -> float:
        name, place = step
        return (rise(name, at[name]) - rise(name, place)) / (size(name, place) - size(name, at[name]))

    while True:
        predicted = sum(rise(name, place) for name, place in at.items())
        schemes = {name: options[name][place] for name, place in at.items()}
        steps = [(name, more) for name in at for more in range(at[name] + 1, len(options[name]))]
        if predicted <= budget or not steps:
            measured = measure(schemes)
            if measured <= budget or not steps:
                return Mix(schemes, predicted, measured)
        name, place = max(steps, key=gain)
        at[name] = place
