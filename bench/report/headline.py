"""What is read first: of each candidate the quality kept, the speed won, size, memory, and a verdict."""

from collections.abc import Iterator
from typing import NamedTuple

from bench.report import wording
from bench.report.schema import CandidateReport, Comparison, Report
from bench.report.table import Cell, Table, key_name, without_empty_columns
from bench.report.verdict import Verdict, main_load, verdict


class Figure(NamedTuple):
    """One number, what it is, `better` | `worse` | nothing, and its interval or what it stands beside."""

    value: str
    what: str
    tone: str = ""
    beside: tuple[str, ...] = ()


class Card(NamedTuple):
    """One candidate; `role` says what it is compared with, `failed` what broke."""

    candidate: str
    role: str
    verdict: Verdict | None
    figures: list[Figure]
    failed: str = ""
    colour: int = 0


def cards(report: Report) -> list[Card]:
    """One per comparison, and one with plain values per candidate that is compared with nothing."""
    return list(_cards(report))


def _cards(report: Report) -> Iterator[Card]:
    references = {comparison.against for comparison in report.comparisons}
    for colour, each in enumerate(report.candidates):
        own = [comparison for comparison in report.comparisons if comparison.candidate == each.name]
        failed = each.failed or ""
        if not own:
            role = "reference" if each.name in references else ""
            yield Card(each.name, role, None, _plain(report, each), failed, colour)
        for comparison in own:
            said = None if failed else verdict(report, comparison)
            role = f"against {comparison.against}"
            yield Card(each.name, role, said, _figures(report, comparison), failed, colour)


def _plain(report: Report, candidate: CandidateReport) -> list[Figure]:
    """Values of a candidate that is compared with nothing."""
    key, found = key_name(report), []
    if key in candidate.quality:
        found.append(Figure(wording.quality(candidate.quality[key]), wording.metric(key, report.evaluation)))
    closed = [entry for entry in candidate.latency if entry.load != "open-loop"]
    first = min(closed, key=lambda entry: (entry.load != "real", entry.batch), default=None)
    if first is not None:
        found.append(Figure(f"{wording.significant(first.p50_ms)} ms", f"median, batch {first.batch}"))
    return [*found, *_weight(candidate, None)]


def _figures(report: Report, comparison: Comparison) -> list[Figure]:
    key, found = key_name(report), []
    if (ratio := comparison.quality.get(key)) is not None:
        spread = _beside(wording.spread(ratio.ci95) if ratio.ci95 else "no interval", ratio.aa_half_width)
        what = f"of {wording.metric(key, report.evaluation)} kept"
        found.append(Figure(f"{ratio.ratio:.1%}", what, wording.tone(ratio), spread))
    speed = main_load(comparison.speedup)
    for each in {each.batch: each for each in (*speed[:1], *speed[-1:])}.values():
        interval = " to ".join(map(wording.decimals, each.ci95)) if each.ci95 else "no interval"
        spread = _beside(interval, each.noise)
        tone = wording.speed_tone(each)
        found.append(Figure(wording.times(each.ratio), f"speed, batch {each.batch}", tone, spread))
    by_name = {each.name: each for each in report.candidates}
    return [*found, *_weight(by_name[comparison.candidate], by_name.get(comparison.against), comparison)]


def _beside(interval: str, chance: float | None) -> tuple[str, ...]:
    return (interval,) if chance is None else (interval, f"A/A {wording.half_width(chance)}")


def _weight(
    candidate: CandidateReport, base: CandidateReport | None, comparison: Comparison | None = None
) -> list[Figure]:
    """Size and peak memory, with their ratios where there is something to compare with."""
    found = []
    size, memory = candidate.size_bytes, candidate.peak_memory_bytes
    ratio = comparison.size_ratio if comparison else None
    if size is not None or ratio is not None:
        beside = () if ratio is None else (f"{wording.times(ratio)} of the reference",)
        found.append(Figure(wording.size(size), "size", "", beside))
    if memory is not None:
        share = wording.quotient(memory, base.peak_memory_bytes if base else None)
        beside = () if share is None else (f"{wording.times(share)} of the reference",)
        found.append(Figure(wording.size(memory), "peak memory", "", beside))
    return found


def headline_table(report: Report) -> Table:
    """The same as one row per card, for pages without cards."""
    shown = cards(report)
    names = list(dict.fromkeys(figure.what for card in shown for figure in card.figures))
    rows = []
    for card in shown:
        figures = {figure.what: figure for figure in card.figures}
        said = f"failed: {card.failed}" if card.failed else card.verdict.text if card.verdict else ""
        cells = (_cell(figures.get(name)) for name in names)
        rows.append((Cell(card.candidate), Cell(card.role), Cell(said or wording.ABSENT), *cells))
    table = Table("In short", "", ("candidate", "role", "verdict", *names), rows)
    return without_empty_columns(table, wording.ABSENT)


def _cell(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell(wording.ABSENT)
    beside = f" ({', '.join(figure.beside)})" if figure.beside else ""
    return Cell(figure.value + beside, figure.tone)
