"""From a scheme as it is asked for to the one that is written: ranges, chosen bits, and what is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compress.quantization.apply import Work
from compress.quantization.damage import Damage
from compress.quantization.schemes import options
from compress.quantization.sensitivity import Mix, Sensitivities
from recommender.errors import StageError
from recommender.quantization_scheme import Group, QuantizationScheme


@dataclass(frozen=True)
class Settled:
    """A scheme that names everything, and what was found on the way to it."""

    scheme: QuantizationScheme
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # for the file of the scheme


def as_asked(work: Work, scheme: QuantizationScheme, *, percentile: float, sensitivity: bool) -> Settled:
    """The scheme with its input ranges; `sensitivity`: with what each of its matrices does alone."""
    scheme = work.with_ranges(scheme, percentile=percentile)
    if not sensitivity:
        return Settled(scheme)
    tried = {name: [matrix] for name, matrix in scheme.matrices.items() if matrix.kind != "fp32"}
    found = work.sensitivities(tried, scheme.method)
    return Settled(scheme, {"sensitivity": as_json(found)}, tuple(told(found)))


def chosen(
    work: Work, scheme: QuantizationScheme, names: Sequence[str], *, group: Group | None, budget: float
) -> Settled:
    """The scheme with the smallest matrices of these names whose divergence stays within the budget.

    The item table of the scheme counts. Raises StageError where that leaves no matrix to quantize, and
    nothing else was asked for, or the item table alone is beyond the budget.
    """
    choices = {name: list(options(group).values()) for name in names}
    made, found = work.mixed(choices, budget=budget, method=scheme.method, item_table=scheme.item_table)
    _check(made, scheme, budget)
    metrics: dict[str, Any] = {
        "sensitivity": as_json(found),
        "kl_budget": budget,
        "kl_predicted": made.predicted,
        "kl_measured": made.measured.kl,
        "measurements": made.measurements,
    }
    lines = [
        f"kl_budget {budget:g} nats, rounded by {scheme.method}: predicted {made.predicted:.5f}, measured "
        f"{made.measured.kl:.5f} +- {made.measured.kl_error:.5f}",
    ]
    if budget < made.measured.kl_error:
        metrics["warning"] = (
            f"kl_budget {budget:g} is less than the standard error of what is measured "
            f"({made.measured.kl_error:.2g} over {len(work.calibration.users)} users): raise "
            "calibration_users"
        )
        lines.append(f"WARNING: {metrics['warning']}")
    notes = (*lines, *told(found))
    return Settled(scheme.model_copy(update={"matrices": made.schemes}), metrics, notes)


def _check(made: Mix, scheme: QuantizationScheme, budget: float) -> None:
    """Raise StageError where the budget cannot be kept, or nothing is left to quantize."""
    if scheme.item_table != "fp32" and not made.measured.kl <= budget:
        raise StageError(
            f"the item table alone, in {scheme.item_table}, takes {made.measured.kl:.3g} nats of the budget "
            f"of {budget:g}",
            where="quantize.kl_budget",
            fix="raise kl_budget, or hold the items in more bits",
        )
    nothing = all(matrix.kind == "fp32" for matrix in made.schemes.values())
    if nothing and scheme.item_table == "fp32":
        raise StageError(
            f"no matrix can be held in fewer bits for a divergence of {budget:g} nats",
            where="quantize.kl_budget",
            fix="raise kl_budget, or see with `sensitivity: true` what each matrix costs",
        )


def as_json(found: Sensitivities) -> dict[str, Any]:
    """The sensitivities as plain data."""
    return {name: {kind: each.as_json() for kind, each in kinds.items()} for name, kinds in found.items()}


def told(found: Sensitivities) -> list[str]:
    """What each matrix does alone, worst first, for people."""
    worst_first = sorted(found.items(), key=lambda each: -max(one.kl for one in each[1].values()))
    rows = [
        f"  {name}: " + ", ".join(f"{kind} {_told(each)}" for kind, each in kinds.items())
        for name, kinds in worst_first
    ]
    return [
        "KL divergence of a matrix alone, in nats +- its standard error (rise of the validation loss):",
        *rows,
    ]


def _told(each: Damage) -> str:
    return f"{each.kl:.6f} +- {each.kl_error:.6f} ({each.loss_rise:+.5f})"
