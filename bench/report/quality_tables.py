"""Tables of ranking quality: per candidate, what is kept, by slice, coverage, and how places moved."""

from collections.abc import Mapping, Sequence

import numpy as np

from bench.report import wording
from bench.report.parts import QualityRatio
from bench.report.schema import CandidateReport, Comparison, Evaluation, Report
from bench.report.table import Cell, Table, by_reference, key_name, row, without_empty_columns


def quality_table(report: Report) -> Table:
    """Each metric of each candidate, with the spread over seeds where there are several."""
    names = list(dict.fromkeys(name for each in report.candidates for name in each.quality))
    seeds = len(report.seeds)
    spread = f"; ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    ranked = "the whole catalogue"
    if report.evaluation.sampled_negatives is not None:
        ranked = f"{report.evaluation.sampled_negatives} sampled items"
    seen = "masked" if report.evaluation.mask_seen else "not masked"
    return Table(
        "Ranking quality",
        f"{_users(report.evaluation)} test users, {report.evaluation.split}, ranked against "
        f"{ranked}, seen items {seen}, ties {report.evaluation.ties}{spread}.",
        ("candidate", *(wording.metric(name, report.evaluation) for name in names)),
        [
            row(each.name, *(_with_spread(each, name) for name in names))
            for each in report.candidates
            if each.quality
        ],
    )


def _users(evaluation: Evaluation) -> str:
    drawn = evaluation.drawn_from
    of = "" if drawn is None else f" (drawn at random) of {wording.count(drawn)}"
    return f"{wording.count(evaluation.users)}{of}"


def _with_spread(candidate: CandidateReport, name: str) -> str:
    value = candidate.quality.get(name)
    seeds = [(each.model_extra or {}).get(name) for each in candidate.quality_by_seed]
    known = [each for each in seeds if each is not None]
    if value is None or len(known) < 2:
        return wording.quality(value)
    return f"{value:.4f} ± {np.std(known, ddof=1):.4f}"


def compared_tables(report: Report) -> list[Table]:
    """Quality ratios with intervals, one table per reference."""
    found = []
    for against, group in by_reference(report):
        names = _compared_metrics(report, group)
        group = [each for each in group if each.quality]
        if not names or not group:
            continue
        key = wording.metric(names[-1], report.evaluation)
        note = "Ratio of means over the same users, 95% bootstrap interval in brackets, p two-sided."
        if any(each.quality[name].aa_half_width for each in group for name in names if name in each.quality):
            note += " A/A: how far the reference with one seed may lie from itself with another."
        header = ("candidate", *(wording.metric(name, report.evaluation) for name in names))
        rows = [_kept_row(each, names) for each in group]
        table = Table(
            f"Quality kept, against {against}", note, (*header, f"p of {key}", f"A/A of {key}"), rows
        )
        found.append(without_empty_columns(table, wording.ABSENT))
    return found


def _kept_row(comparison: Comparison, names: Sequence[str]) -> tuple[Cell, ...]:
    key = comparison.quality.get(names[-1])
    return (
        Cell(comparison.candidate),
        *(_ratio_cell(comparison, name) for name in names),
        Cell(wording.p_value(key.p_value if key else None)),
        Cell(wording.half_width(key.aa_half_width if key else None)),
    )


def _compared_metrics(report: Report, group: Sequence[Comparison]) -> list[str]:
    """HR at two cut-offs, MRR, and last the key metric, whose p-value is shown."""
    key = key_name(report)
    known = {name for each in group for name in each.quality}
    wanted = ["hr@1", f"hr@{key.split('@')[1]}", "mrr", key]
    return [name for name in dict.fromkeys(wanted) if name in known]


def _ratio_cell(comparison: Comparison, name: str) -> Cell:
    found = comparison.quality.get(name)
    if found is None:
        return Cell(wording.ABSENT)
    return Cell(wording.percent(found.ratio, found.ci95), wording.tone(found))


def slice_tables(report: Report) -> list[Table]:
    """The key metric by history length and by popularity, with what a candidate keeps of its reference."""
    key = key_name(report)
    ratios: dict[tuple[str, str, str], QualityRatio] = {
        (r.candidate, r.by, r.bin): r.ratio for r in report.sections.slice_ratios or []
    }
    label = wording.metric(key, report.evaluation)
    titles = {"history": "length of the history", "popularity": "popularity of the next item in training"}
    sliced = [each for each in report.candidates if each.slices]
    found = []
    for by, title in titles.items():
        bins = list(dict.fromkeys((s.bin, s.users) for c in sliced for s in c.slices if s.by == by))
        rows = []
        for name, users in bins:
            cells = [_slice_cell(each, by, name, key, ratios) for each in sliced]
            rows.append((Cell(name), Cell(f"{users:,}"), *cells))
        note = (
            f"{label}; in brackets the share kept of the reference, marked where 100% is not in its interval."
        )
        found.append(Table(f"{label} by {title}", note, (by, "users", *(each.name for each in sliced)), rows))
    return found


def _slice_cell(
    candidate: CandidateReport,
    by: str,
    name: str,
    key: str,
    ratios: Mapping[tuple[str, str, str], QualityRatio],
) -> Cell:
    value = next((s.quality.get(key) for s in candidate.slices if (s.by, s.bin) == (by, name)), None)
    ratio = ratios.get((candidate.name, by, name))
    if value is None or ratio is None:
        return Cell(wording.quality(value))
    return Cell(f"{value:.4f} ({ratio.ratio * 100:.0f}%)", wording.tone(ratio))


def coverage_table(report: Report) -> Table:
    """What all lists together show."""
    names = list(dict.fromkeys(name for each in report.candidates for name in each.coverage))
    return Table(
        "Coverage and popularity bias",
        "Over the lists of all test users: distinct items, their share of the catalogue, Gini index of how "
        "often each item is shown (0: all alike), and the share of places that go to head, middle, tail and "
        "cold items.",
        ("candidate", *names),
        [
            row(each.name, *(_coverage(name, each.coverage.get(name)) for name in names))
            for each in report.candidates
            if each.coverage
        ],
    )


def _coverage(name: str, value: float | None) -> str:
    if value is None:
        return wording.ABSENT
    if name.startswith("items@"):
        return wording.count(value)
    return f"{value:.2f}" if name.startswith("gini") else wording.percent(value)


def change_table(report: Report) -> Table:
    """How many users see their next item higher, at the same place, lower."""
    rows = []
    for each in report.sections.rank_changes or []:
        total = max(each.better + each.same + each.worse, 1)
        shares = (f"{users:,} ({users / total:.0%})" for users in (each.better, each.same, each.worse))
        depth = wording.ABSENT if each.depth is None else f"{each.depth:,}"
        rows.append(row(f"{each.candidate} against {each.against}", *shares, depth))
    table = Table(
        "Places of the true next items",
        "Users by what becomes of the place of the item that they really chose next. Where a depth is given, "
        "places beyond it count as it, because one of the lists ends there.",
        ("pair", "better", "same", "worse", "depth"),
        rows,
    )
    return without_empty_columns(table, wording.ABSENT)
