"""Does a report allow to ship? Lower confidence bounds decide; what cannot be decided is not allowed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.demand import Demand
from bench.report import wording
from bench.report.parts import Interval, QualityRatio
from bench.report.schema import CandidateReport, Comparison, Report, Speedup
from recommender.errors import InputError, nearest

NO_INTERVAL = "no interval: too few {of}, so nothing can be said with 95% confidence"


@dataclass(frozen=True)
class Verdict:
    """One demand, and what the report says of it."""

    demand: str  # one of bench.demand.LIMITS
    what: str  # in words
    asked: float
    measured: float
    bound: float | None  # what is held against `asked`; None: it does not exist, so the demand does not hold
    holds: bool
    note: str = ""

    @property
    def asked_text(self) -> str:
        """`>= 97.0%`."""
        return f"{'>=' if self._from_below else '<='} {self._text(self.asked)}"

    @property
    def measured_text(self) -> str:
        """`98.1%`."""
        return self._text(self.measured)

    @property
    def bound_text(self) -> str:
        """`95.3%`, or a dash."""
        return wording.ABSENT if self.bound is None else self._text(self.bound)

    @property
    def _from_below(self) -> bool:
        return self.demand.startswith("min")

    def _text(self, value: float) -> str:
        return wording.times(value) if self.demand == "min_speedup" else wording.percent(value)

    def __str__(self) -> str:
        """NDCG@10 kept: 98.1%, lower bound 95.3%, asked >= 97.0%."""
        kind = "lower bound" if self._from_below else "bound"
        said = self.note if self.bound is None else f"{kind} {self.bound_text}"
        return f"{self.what}: {self.measured_text}, {said}, asked {self.asked_text}"

    def as_document(self) -> dict[str, Any]:
        """For JSON; what does not exist has no key."""
        said = {
            "demand": self.demand, "what": self.what, "asked": self.asked, "measured": self.measured,
            "bound": self.bound, "holds": self.holds, "note": self.note or None,
        }  # fmt: skip
        return {key: value for key, value in said.items() if value is not None}


def decide(report: Report, demand: Demand, *, where: str = "report.json") -> list[Verdict]:
    """One verdict per demand; the gate is open when all of them hold.

    A bound that does not exist (too few users or rounds for an interval) does not hold. Raises InputError for
    a question that the report has no answer to: an unknown or failed candidate, a comparison that was not
    made, a metric, load, batch size, size or memory that was not measured, memory of a candidate on a GPU.
    """
    pair = _candidate(report, demand.candidate, where), _candidate(report, demand.against, where)
    comparison = _comparison(report, pair, demand, where)
    verdicts: list[Verdict] = []
    if demand.min_quality is not None:
        found = _quality(report, comparison, pair, demand.metric, where)
        verdicts.append(_quality_verdict(report, demand.metric, demand.min_quality, found))
    if demand.min_speedup is not None:
        cells = _speedups(comparison, demand, where)
        verdicts += [_speed_verdict(demand.min_speedup, cell) for cell in cells]
    if demand.max_aa_floor is not None:
        verdicts += [
            _floor(demand.max_aa_floor, cell, where) for cell in _speedups(comparison, demand, where)
        ]
    if demand.max_size_ratio is not None:
        sizes = [each.size_bytes for each in pair]
        verdicts.append(_exact("max_size_ratio", "size", demand.max_size_ratio, sizes, pair, where))
    if demand.max_memory_ratio is not None:
        _check_memory(pair, where)
        peaks = [each.peak_memory_bytes for each in pair]
        verdicts.append(
            _exact("max_memory_ratio", "peak memory", demand.max_memory_ratio, peaks, pair, where)
        )
    return verdicts


def _candidate(report: Report, name: str, where: str) -> CandidateReport:
    """The candidate of a name; the variant of an artifact may stand behind a colon, the default one's too."""
    named = {f"{each.name}:{each.variant}": each for each in report.candidates if each.variant is not None}
    known = named | {each.name: each for each in report.candidates}
    if name not in known:
        raise InputError(f"the report has no candidate {name!r}{nearest(name, known)}", where=where)
    if (reason := known[name].failed) is not None:
        raise InputError(
            f"{name!r} could not be measured: {reason}", where=where, fix="mend it and run the bench again"
        )
    return known[name]


def _comparison(
    report: Report, pair: tuple[CandidateReport, CandidateReport], demand: Demand, where: str
) -> Comparison:
    for each in report.comparisons:
        if (each.candidate, each.against) == (pair[0].name, pair[1].name):
            return each
    there = [f"{each.candidate} against {each.against}" for each in report.comparisons]
    raise InputError(
        f"the report does not compare {demand.candidate!r} with {demand.against!r}; "
        f"it has: {', '.join(there) or 'no comparison'}",
        where=where,
        fix=f"run the bench with `against: {demand.against}` and {demand.candidate} in `compare`",
    )


def _quality(
    report: Report, comparison: Comparison, pair: Sequence[CandidateReport], metric: str, where: str
) -> QualityRatio:
    if (found := comparison.quality.get(metric)) is not None:
        return found
    shared = [name for name in report.candidates[0].quality if all(name in each.quality for each in pair)]
    measured = list(dict.fromkeys([*comparison.quality, *shared]))
    if metric in shared:
        raise InputError(
            f"{metric!r} of {comparison.against!r} is 0, so nothing can be held against it", where=where,
            fix="choose another metric, or evaluate more users",
        )  # fmt: skip
    raise InputError(
        f"{metric!r} was not measured of {comparison.candidate!r} and {comparison.against!r} both"
        f"{nearest(metric, measured) if measured else ''}",
        where=where,
        fix=f"choose one of: {', '.join(measured)}; or name other cut-offs in evaluation.ks",
    )


def _quality_verdict(report: Report, metric: str, asked: float, found: QualityRatio) -> Verdict:
    bound, note = _lower(found.ci95, "users")
    if bound is not None and found.aa_half_width is not None:
        note = f"two seeds of the same model: within {wording.percent(found.aa_half_width)}"
    what = f"{wording.metric(metric, report.evaluation)} kept"
    return Verdict("min_quality", what, asked, found.ratio, bound, bound is not None and bound >= asked, note)


def _speedups(comparison: Comparison, demand: Demand, where: str) -> list[Speedup]:
    """Those at the load and batch size that are asked for; several where thread counts differ."""
    found = [each for each in comparison.speedup if (each.load, each.batch) == (demand.load, demand.batch)]
    if found:
        return found
    measured: dict[str, list[int]] = {}
    for each in comparison.speedup:
        measured.setdefault(each.load, []).append(each.batch)
    said = "; ".join(f"{load}: batch {', '.join(map(str, sizes))}" for load, sizes in measured.items())
    raise InputError(
        f"no speed-up was measured at load {demand.load!r}, batch {demand.batch}; there is: {said or 'none'}",
        where=where,
        fix="choose one of these, or run the bench with other `loads` and `batch_sizes`",
    )


def _speed_verdict(asked: float, found: Speedup) -> Verdict:
    bound, note = _lower(found.ci95, "rounds")
    if bound is not None and found.noise is not None:
        note = f"the same model in two processes: within {wording.percent(found.noise)}"
    what = f"speed-up, {_cell(found)}"
    return Verdict("min_speedup", what, asked, found.ratio, bound, bound is not None and bound >= asked, note)


def _floor(asked: float, found: Speedup, where: str) -> Verdict:
    """How quiet the machine was where the speed-up was measured; the end of the interval decides."""
    if found.aa_floor is None or found.noise is None:
        raise InputError(
            f"no A/A floor was measured at {_cell(found)}", where=where,
            fix="leave max_aa_floor out, or run the bench with `aa: true`",
        )  # fmt: skip
    bound, note = (found.noise, "") if found.aa_ci95 else (None, NO_INTERVAL.format(of="rounds"))
    what, holds = f"A/A floor, {_cell(found)}", bound is not None and bound <= asked
    return Verdict("max_aa_floor", what, asked, found.aa_floor, bound, holds, note)


def _cell(found: Speedup) -> str:
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return f"{wording.load(found.load)}, batch {found.batch}, {threads}"


def _lower(ci95: Interval | None, of: str) -> tuple[float | None, str]:
    return (None, NO_INTERVAL.format(of=of)) if ci95 is None else (ci95[0], "")


def _check_memory(pair: Sequence[CandidateReport], where: str) -> None:
    """Refuse where the memory that matters is a GPU's: a report holds that of the process only."""
    elsewhere = [each for each in pair if each.device != "cpu"]
    if elsewhere:
        raise InputError(
            f"{' and '.join(f'{each.name!r} ran on {each.device}' for each in elsewhere)}: "
            "GPU memory is not in the report",
            where=where,
            fix="leave max_memory_ratio out, or run the bench with --device cpu",
        )


def _exact(
    demand: str,
    what: str,
    asked: float,
    values: list[int | None],
    pair: Sequence[CandidateReport],
    where: str,
) -> Verdict:
    """A ratio of numbers that do not scatter: it is its own bound."""
    unknown = [each.name for each, value in zip(pair, values, strict=True) if not value]
    candidate, against = values
    if not candidate or not against:
        raise InputError(
            f"the {what} of {' and '.join(map(repr, unknown))} was not measured", where=where,
            fix=f"leave {demand} out, or run the bench with a recpress that measures it",
        )  # fmt: skip
    ratio = candidate / against
    return Verdict(demand, what, asked, ratio, ratio, ratio <= asked)


def refusals(verdicts: Iterable[Verdict]) -> list[str]:
    """In words, every demand that does not hold; empty: the gate is open."""
    return [str(each) for each in verdicts if not each.holds]
