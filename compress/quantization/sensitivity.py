"""How much each matrix loses by itself, and which to hold in how many bits for what that costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from compress.quantization.rounding import tried
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme, packed_bytes

Rises = dict[str, dict[str, float]]
"""{matrix: {kind: what the validation loss gains when this matrix alone is held so}}."""


def rises(
    linears: Mapping[str, Linear],
    options: Mapping[str, Sequence[MatrixScheme]],
    evaluate: Callable[[], float],
    base: float,
) -> Rises:
    """The loss gained by each matrix alone in each of its schemes (rounded to nearest), against `base`."""
    found: Rises = {}
    for name, schemes in options.items():
        found[name] = {}
        for scheme in schemes:
            with tried(linears, {name: scheme}):
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
