"""The report in a few lines: sentences and one small table."""

from bench.report import wording
from bench.report.schema import Comparison, Report
from bench.report.tables import Cell, Table, key_name


def headlines(report: Report) -> list[str]:
    """One sentence per comparison: quality kept, speed, size."""
    return [_sentence(report, each) for each in report.comparisons]


def _sentence(report: Report, comparison: Comparison) -> str:
    key = key_name(report)
    parts = []
    if (found := comparison.quality.get(key)) is not None:
        spread = f" (95% interval {found.ci95[0]:.1%} to {found.ci95[1]:.1%})" if found.ci95 else ""
        label = wording.metric(key, report.evaluation)
        parts.append(f"keeps {found.ratio:.1%}{spread} of the {label} of {comparison.against}")
    if speed := [each for each in comparison.speedup if each.load == "real"] or comparison.speedup:
        shown = ", ".join(f"{wording.times(each.ratio)} at batch {each.batch}" for each in speed)
        parts.append(f"its speed is {shown} ({wording.load(speed[0].load)})")
    if comparison.size_ratio is not None:
        parts.append(f"its size {wording.times(comparison.size_ratio)}")
    return (
        f"{comparison.candidate}: {'; '.join(parts)}."
        if parts
        else f"{comparison.candidate}: nothing to compare."
    )


def summary(report: Report) -> Table:
    """One row per candidate: quality, what it keeps, size, time of the smallest batch, speed-up."""
    key = key_name(report)
    compared = {each.candidate: each for each in report.comparisons}
    rows: list[tuple[Cell, ...]] = []
    for each in report.candidates:
        comparison = compared.get(each.name)
        ratio = comparison.quality.get(key) if comparison else None
        first = next(iter(sorted(each.latency, key=lambda entry: (entry.load != "real", entry.batch))), None)
        faster = None
        if comparison and first:
            same = ((s.load, s.batch) == (first.load, first.batch) and s for s in comparison.speedup)
            faster = next((found for found in same if found), None)
        rows.append(
            (
                Cell(each.name),
                Cell(wording.quality(each.quality.get(key))),
                Cell(wording.percent(ratio.ratio, ratio.ci95), wording.tone(ratio))
                if ratio
                else Cell(wording.ABSENT),
                Cell(wording.count(each.parameters)),
                Cell(wording.size(each.size_bytes)),
                Cell(wording.significant(first.p50_ms) if first else wording.ABSENT),
                Cell(wording.times(faster.ratio, faster.ci95) if faster else wording.ABSENT),
            )
        )
    header = (
        "candidate",
        wording.metric(key, report.evaluation),
        "kept",
        "parameters",
        "size",
        "p50 ms",
        "speed-up",
    )
    return Table(f"{report.recipe} on {report.dataset.name}", "", header, rows)
