"""What each matrix does to the answers by itself, and which to hold in how many bits for what that costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from compress.quantization.damage import Damage
from compress.quantization.rounding import round_in_place, tried
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme, packed_bytes

Sensitivities = dict[str, dict[str, Damage]]
"""{matrix: {kind: what holding this matrix alone so does to the answers}}."""


def sensitivities(
    linears: Mapping[str, Linear],
    options: Mapping[str, Sequence[MatrixScheme]],
    measure: Callable[[], Damage],
    hessians: Callable[[Mapping[str, Linear]], Mapping[str, Tensor]] = lambda _: {},
) -> Sensitivities:
    """What is measured of the model with each matrix alone in each of its schemes.

    `hessians`: of the inputs of some matrices, for those that GPTQ rounds; others are rounded to nearest. It
    is asked block by block, so that it holds those of one block at a time.
    """
    found: Sensitivities = {}
    for _, block in groupby(options, key=lambda name: linears[name].block):
        names = list(block)
        fed = hessians({name: linears[name] for name in names})
        for name in names:
            found[name] = {}
            for scheme in options[name]:
                with tried(linears, {name: scheme}, partial(round_in_place, linears, hessians=fed)):
                    found[name][scheme.kind] = measure()
    return found


class Mix(NamedTuple):
    """A mixed scheme, and what it is expected and measured to do to the answers."""

    schemes: dict[str, MatrixScheme]
    predicted: float  # sum of the divergences of its matrices alone
    measured: Damage
    measurements: int  # of whole schemes that it took


def mix(
    linears: Mapping[str, Linear],
    options: Mapping[str, Sequence[MatrixScheme]],
    found: Sensitivities,
    *,
    budget: float,
    measure: Callable[[Mapping[str, MatrixScheme]], Damage],
    first: float = 0.0,
) -> Mix:
    """The smallest matrices whose divergence stays within `budget`, as measured of all of them together.

    The candidates are those of `by_worth`. The first that is measured is the one whose forecast (`first` and
    the divergences of its matrices alone, taken as additive) fits; then the range between one that fits and
    one that does not is halved, so that few are measured. Where even the last, all as they are, does not fit,
    it is what comes back: the caller compares.
    """
    path = list(by_worth(linears, options, found))
    forecasts = [first + sum(_alone(found, name, each) for name, each in step.items()) for step in path]
    at = next((place for place, forecast in enumerate(forecasts) if forecast <= budget), len(path) - 1)
    low, high, best, count = 0, len(path) - 1, None, 0
    while low <= high:
        made, count = Mix(path[at], forecasts[at], measure(path[at]), count + 1), count + 1
        if made.measured.kl <= budget:
            best, high = made, at - 1
        else:
            low = at + 1
        at = (low + high) // 2
    return (best or made)._replace(measurements=count)


def by_worth(
    linears: Mapping[str, Linear], options: Mapping[str, Sequence[MatrixScheme]], found: Sensitivities
) -> Iterator[dict[str, MatrixScheme]]:
    """Every matrix with its smallest option, then with one more of them raised, until all have their largest.

    The one that is raised is the one that saves most divergence for the bytes it adds. Options go from small
    to large; the last one changes nothing.
    """
    at = dict.fromkeys(options, 0)

    def gain(step: tuple[str, int]) -> float:
        name, place = step
        rows, width = linears[name].matrix().shape
        now, then = options[name][at[name]], options[name][place]
        saved = _alone(found, name, now) - _alone(found, name, then)
        return saved / (packed_bytes(rows, width, then) - packed_bytes(rows, width, now))

    while True:
        yield {name: options[name][place] for name, place in at.items()}
        steps = [(name, more) for name in at for more in range(at[name] + 1, len(options[name]))]
        if not steps:
            return
        name, place = max(steps, key=gain)
        at[name] = place


def _alone(found: Sensitivities, name: str, scheme: MatrixScheme) -> float:
    """The divergence of a matrix alone; 0 where it stays as it is."""
    return 0.0 if scheme.kind == "fp32" else found[name][scheme.kind].kl
