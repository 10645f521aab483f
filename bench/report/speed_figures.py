"""Figures of speed: latency against batch size, and against the rate at which requests arrive."""

from bench.report import wording
from bench.report.blocks import Figure, Figures
from bench.report.plot_lines import Guide, Line, Look, lines
from bench.report.schema import CandidateReport, Latency, Report


def batch_figures(report: Report) -> Figures:
    """Milliseconds per call against batch size, one plot per load; none for a single batch size."""
    loads = dict.fromkeys(entry.load for each in report.candidates for entry in each.latency)
    figures = [
        figure for load in loads if load != "open-loop" and (figure := _by_batch(report, load)) is not None
    ]
    return Figures("", "Marks are medians; whiskers reach up to p95 where there are samples for it.", figures)


def _by_batch(report: Report, load: str) -> Figure | None:
    series = []
    for colour, each in enumerate(report.candidates):
        entries = sorted((e for e in each.latency if e.load == load), key=lambda entry: entry.batch)
        if entries:
            points = [(float(entry.batch), entry.p50_ms) for entry in entries]
            series.append(Line(each.name, points, colour, [entry.p95_ms for entry in entries]))
    batches = sorted({x for each in series for x, _ in each.points})
    if len(batches) < 2:
        return None
    caption = f"Time of a call, {wording.load(load)}"
    look = Look("users per call (log scale)", "milliseconds (log scale)", x_ticks=batches)
    return Figure(caption, lines(series, look, title=caption))


def rate_figures(report: Report) -> Figures:
    """Latency against offered rate, one plot per candidate and batch size, with its saturation point."""
    figures = []
    for colour, each in enumerate(report.candidates):
        loaded = [entry for entry in each.latency if entry.load == "open-loop" and entry.rate is not None]
        for batch in sorted({entry.batch for entry in loaded}):
            entries = sorted((e for e in loaded if e.batch == batch), key=lambda entry: entry.rate or 0.0)
            if len(entries) > 1:
                figures.append(_by_rate(report, each, batch, entries, colour))
    return Figures(
        "",
        "Latency from arrival to answer, waiting included. The upright dashed line is the highest rate that "
        "was kept up with; beyond it requests queue up.",
        figures,
    )


def _by_rate(
    report: Report, candidate: CandidateReport, batch: int, entries: list[Latency], colour: int
) -> Figure:
    series = []
    for name, hollow in (("p50", False), ("p95", True), ("p99", True)):
        values = [(entry.rate, getattr(entry, f"{name}_ms")) for entry in entries]
        points = [(rate, value) for rate, value in values if rate is not None and value is not None]
        if points:
            series.append(Line(name, points, colour, hollow=hollow))
    guides = []
    for found in report.sections.saturation or []:
        if (found.candidate, found.batch) == (candidate.name, batch):
            kept = f"keeps up to {wording.significant(found.users_per_second)} / s"
            guides.append(Guide(found.users_per_second, kept))
            if found.limit_ms is not None:
                limit = f"limit {wording.significant(found.limit_ms)} ms"
                guides.append(Guide(found.limit_ms, limit, upright=False))
    caption = f"{candidate.name}, up to {batch} requests together"
    look = Look("offered requests per second (log scale)", "milliseconds (log scale)")
    return Figure(caption, lines(series, look, title=f"Latency under load: {caption}", guides=guides))
