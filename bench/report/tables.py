"""The tables of a report as plain text cells; Markdown, HTML and the terminal show the same ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bench.report import wording
from bench.report.schema import CandidateReport, Comparison, Latency, QualityRatio, Report


class Cell(NamedTuple):
    """What stands in a cell, and whether it is clearly `better` or `worse` than what it is compared with."""

    text: str
    tone: str = ""


class Table(NamedTuple):
    """A table; the first column names the row."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def tables(report: Report) -> list[Table]:
    """All tables that the report has numbers for, in reading order."""
    found = [size_table(report), quality_table(report), *compared_tables(report), *speed_tables(report)]
    found += [
        *smaller_tables(report),
        *slice_tables(report),
        coverage_table(report),
        *latency_tables(report),
        *training_table(report),
    ]
    return [table for table in found if table.rows]


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
        f"{wording.count(report.evaluation.users)} test users, {report.evaluation.split}, ranked against "
        f"{ranked}, seen items {seen}, ties {report.evaluation.ties}{spread}.",
        ("candidate", *(wording.metric(name, report.evaluation) for name in names)),
        [_row(each.name, *(_with_spread(each, name) for name in names)) for each in report.candidates],
    )


def _with_spread(candidate: CandidateReport, name: str) -> str:
    value = candidate.quality.get(name)
    seeds = [(each.model_extra or {}).get(name) for each in candidate.quality_by_seed]
    known = [each for each in seeds if each is not None]
    if value is None or len(known) < 2:
        return wording.quality(value)
    return f"{value:.4f} ± {np.std(known, ddof=1):.4f}"


def compared_tables(report: Report) -> list[Table]:
    """Quality ratios with intervals, one table per reference."""
    return [
        Table(
            f"Quality kept, against {against}",
            "Ratio of means over the same users, 95% bootstrap interval in brackets, p two-sided.",
            (
                "candidate",
                *(wording.metric(name, report.evaluation) for name in names),
                f"p of {wording.metric(names[-1], report.evaluation)}",
            ),
            [
                (
                    Cell(each.candidate),
                    *(_ratio_cell(each, name) for name in names),
                    Cell(
                        wording.p_value(each.quality[names[-1]].p_value)
                        if names[-1] in each.quality
                        else wording.ABSENT
                    ),
                )
                for each in group
            ],
        )
        for against, group in _by_reference(report)
        for names in [_compared_metrics(report, group)]
        if names
    ]


def _by_reference(report: Report) -> list[tuple[str, list[Comparison]]]:
    references = dict.fromkeys(each.against for each in report.comparisons)
    return [(name, [each for each in report.comparisons if each.against == name]) for name in references]


def _compared_metrics(report: Report, group: Sequence[Comparison]) -> list[str]:
    """HR at two cut-offs, MRR, and last the key metric, whose p-value is shown."""
    key = key_name(report)
    known = {name for each in group for name in each.quality}
    wanted = ["hr@1", f"hr@{key.split('@')[1]}", "mrr", key]
    return [name for name in wanted if name in known]


def key_name(report: Report) -> str:
    """The metric of headlines: NDCG@10, else NDCG at the largest cut-off."""
    ks = report.evaluation.ks
    return f"ndcg@{10 if 10 in ks else max(ks)}"


def _ratio_cell(comparison: Comparison, name: str) -> Cell:
    found = comparison.quality.get(name)
    if found is None:
        return Cell(wording.ABSENT)
    return Cell(wording.percent(found.ratio, found.ci95), wording.tone(found))


def speed_tables(report: Report) -> list[Table]:
    """How many times faster at each batch size, one table per reference and load."""
    found = []
    for against, group in _by_reference(report):
        for load in dict.fromkeys(s.load for each in group for s in each.speedup):
            batches = sorted({s.batch for each in group for s in each.speedup if s.load == load})
            rows = []
            for each in group:
                speed = {s.batch: wording.times(s.ratio, s.ci95) for s in each.speedup if s.load == load}
                rows.append(_row(each.candidate, *(speed.get(batch, wording.ABSENT) for batch in batches)))
            title = f"Speed on {wording.load(load)}, against {against}"
            note = "Median time, reference / candidate; 95% bootstrap interval over rounds in brackets."
            found.append(Table(title, note, ("candidate", *(f"batch {batch}" for batch in batches)), rows))
    return found


def smaller_tables(report: Report) -> list[Table]:
    """Size and parameters as ratios, one table per reference."""
    return [
        Table(
            f"Size, against {against}",
            "Candidate / reference.",
            ("candidate", "size", "parameters"),
            [
                _row(each.candidate, wording.times(each.size_ratio), wording.times(each.parameter_ratio))
                for each in group
            ],
        )
        for against, group in _by_reference(report)
    ]


def slice_tables(report: Report) -> list[Table]:
    """The key metric by history length and by popularity, with what a candidate keeps of its reference."""
    key = key_name(report)
    ratios: dict[tuple[str, str, str], QualityRatio] = {
        (r.candidate, r.by, r.bin): r.ratio for r in report.sections.slice_ratios or []
    }
    label = wording.metric(key, report.evaluation)
    titles = {"history": "length of the history", "popularity": "popularity of the next item in training"}
    found = []
    for by, title in titles.items():
        bins = list(
            dict.fromkeys((s.bin, s.users) for c in report.candidates for s in c.slices if s.by == by)
        )
        rows = []
        for name, users in bins:
            cells = [_slice_cell(each, by, name, key, ratios) for each in report.candidates]
            rows.append((Cell(name), Cell(f"{users:,}"), *cells))
        note = (
            f"{label}; in brackets the share kept of the reference, marked where 100% is not in its interval."
        )
        header = (by, "users", *(each.name for each in report.candidates))
        found.append(Table(f"{label} by {title}", note, header, rows))
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
        "Coverage",
        "Over the lists of all test users: distinct items, their share of the catalogue, Gini index of how "
        "often each item is shown (0: all alike), and the share of places that go to head, middle, tail and "
        "cold items.",
        ("candidate", *names),
        [
            _row(each.name, *(_coverage(name, each.coverage.get(name)) for name in names))
            for each in report.candidates
        ],
    )


def _coverage(name: str, value: float | None) -> str:
    if name.startswith("items@"):
        return wording.count(value)
    return (
        wording.ABSENT
        if value is None
        else f"{value:.2f}"
        if name.startswith("gini")
        else wording.percent(value)
    )


def latency_tables(report: Report) -> list[Table]:
    """One table per load: every candidate at every batch size."""
    found = []
    for load in dict.fromkeys(entry.load for each in report.candidates for entry in each.latency):
        entries = [
            (each, entry) for each in report.candidates for entry in each.latency if entry.load == load
        ]
        entries.sort(key=lambda pair: pair[1].batch)
        note = "Milliseconds per call; p95 needs 20 samples, p99 needs 100."
        header = (
            "candidate",
            "batch",
            "threads",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "users / s",
            "samples",
            "mean length",
        )
        rows = [_latency_row(each, entry) for each, entry in entries]
        found.append(Table(f"Latency, {wording.load(load)}", note, header, rows))
    return found


def _latency_row(candidate: CandidateReport, entry: Latency) -> tuple[Cell, ...]:
    high = (wording.significant(value) for value in (entry.p50_ms, entry.p95_ms, entry.p99_ms))
    return _row(
        candidate.name, str(entry.batch), str(entry.threads), *high,
        wording.significant(entry.users_per_second), str(entry.samples), f"{entry.length:g}",
    )  # fmt: skip


def size_table(report: Report) -> Table:
    """What each candidate is and how large."""
    header = ("made from", "kind", "runtime", "precision", "device", "parameters", "body", "size")
    return Table(
        "Candidates",
        "Body: blocks, final norm and projections, without item tables, word embeddings and heads.",
        ("candidate", *header),
        [
            _row(
                each.name,
                each.of or wording.ABSENT,
                each.kind,
                each.runtime,
                each.precision or wording.ABSENT,
                each.device,
                wording.count(each.parameters),
                wording.count(each.body_parameters),
                wording.size(each.size_bytes),
            )
            for each in report.candidates
        ],
    )


def training_table(report: Report) -> list[Table]:
    """What training cost, of those that were trained."""
    rows = [
        _row(each.name, f"{each.train.epochs:g}" if each.train.epochs is not None else wording.ABSENT,
             wording.duration(each.train.seconds), wording.duration(each.train.seconds_per_epoch))
        for each in report.candidates
        if each.train is not None
    ]  # fmt: skip
    note = "Of the stage that made it, mean over seeds."
    return [Table("Training", note, ("candidate", "epochs", "time", "per epoch"), rows)]


def _row(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)
