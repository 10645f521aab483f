"""Figures of quality: against speed, what is kept and won, slices, shares of shelves, moved places."""

from collections.abc import Iterator

from bench.report import wording
from bench.report.blocks import Figure, Figures
from bench.report.parts import Pareto, SliceRatio
from bench.report.plot import Point, scatter
from bench.report.plot_bars import share_bars
from bench.report.plot_changes import changes
from bench.report.plot_intervals import Row, Scale, intervals, shown_values
from bench.report.schema import Comparison, Report
from bench.report.table import by_reference, colour_of, key_name
from bench.report.verdict import NON_INFERIOR, main_load

SHELVES = ("head", "middle", "tail", "cold")
RATIOS = (0.0, 2.0)
"""Quality ratios beyond these are drawn as arrows at the edge."""


def pareto_figures(report: Report) -> Figures:
    """One scatter per load and batch size, real traffic first."""
    order = {"real": 0, "full": 1}
    found = [each for each in report.sections.pareto or [] if each.points]
    found.sort(key=lambda each: (order.get(each.load, 2), each.batch))
    return Figures(
        "",
        "Bars are 95% intervals (quality: over users; speed: over rounds). Diamonds are artifacts, circles "
        "checkpoints; filled marks on the dashed line are those that nothing beats in both.",
        [_pareto(report, each) for each in found],
    )


def _pareto(report: Report, pareto: Pareto) -> Figure:
    threads = wording.threads(pareto.threads)
    caption = f"Batch {pareto.batch}, {wording.load(pareto.load)}, {threads}"
    label = wording.metric(pareto.metric, report.evaluation)
    points = [
        Point(
            label=each.candidate,
            x=each.users_per_second,
            y=each.quality,
            x_ci95=each.users_per_second_ci95,
            y_ci95=each.quality_ci95,
            shape="diamond" if each.kind == "artifact" else "circle",
            colour=colour_of(report, each.candidate),
        )
        for each in pareto.points
    ]
    title = f"{label} against users per second. {caption}"
    return Figure(
        caption, scatter(points, x_label="users per second (log scale)", y_label=label, title=title)
    )


def kept_figures(report: Report) -> Figures:
    """Quality kept, and speed won at each batch size, as ratios with their intervals."""
    figures: list[Figure] = []
    for against, group in by_reference(report):
        figures += _kept(report, against, group)
        figures += _won(report, against, group)
    note = "Bars are 95% intervals of the paired ratio; the line at 1 is the reference"
    if any(each.aa_half_width for one in report.comparisons for each in one.quality.values()) or any(
        each.noise for one in report.comparisons for each in one.speedup
    ):
        note += ", grey around it: what the same model does against itself (A/A)"
    margin = f"The dashed line is at {NON_INFERIOR:.0%}: who stays above it is not worse."
    return Figures("", f"{note}. {margin}", figures)


def _kept(report: Report, against: str, group: list[Comparison]) -> Iterator[Figure]:
    key = key_name(report)
    rows, chance = [], []
    for each in group:
        if (found := each.quality.get(key)) is not None:
            said = wording.percent(found.ratio, found.ci95)
            rows.append(Row(each.candidate, found.ratio, found.ci95, said, colour_of(report, each.candidate)))
            chance.append(found.aa_half_width or 0.0)
    if rows:
        label = wording.metric(key, report.evaluation)
        caption = f"{label} kept, against {against}"
        scale = Scale(limits=RATIOS, percent=True, band=max(chance), margin=NON_INFERIOR)
        yield Figure(caption, intervals(rows, scale, x_label=f"share of {label} kept", title=caption))


def _won(report: Report, against: str, group: list[Comparison]) -> Iterator[Figure]:
    found = [(each.candidate, speed) for each in group for speed in main_load(each.speedup)]
    for load, batch in sorted({(speed.load, speed.batch) for _, speed in found}):
        here = [(name, speed) for name, speed in found if (speed.load, speed.batch) == (load, batch)]
        rows = [
            Row(
                name, speed.ratio, speed.ci95, wording.times(speed.ratio, speed.ci95), colour_of(report, name)
            )
            for name, speed in here
        ]
        caption = f"Speed at batch {batch}, {wording.load(load)}, against {against}"
        scale = Scale(log=True, band=max(speed.noise or 0.0 for _, speed in here))
        yield Figure(caption, intervals(rows, scale, x_label="times as fast (log scale)", title=caption))


def slice_figures(report: Report) -> Figures:
    """What each candidate keeps on each slice; all over the same axis."""
    found = report.sections.slice_ratios or []
    groups: dict[tuple[str, str, str], list[SliceRatio]] = {}
    for each in found:
        groups.setdefault((each.candidate, each.against, each.metric), []).append(each)
    rows = {group: [_slice_row(report, each) for each in members] for group, members in groups.items()}
    span = [value for members in rows.values() for value in shown_values(members, RATIOS)]
    figures = []
    for (candidate, against, metric), members in rows.items():
        label = wording.metric(metric, report.evaluation)
        caption = f"{candidate}, against {against}"
        scale = Scale(limits=RATIOS, percent=True, span=span)
        title = f"{label} kept on each slice: {caption}"
        plot = intervals(members, scale, x_label=f"share of {label} kept", title=title)
        figures.append(Figure(caption, plot))
    return Figures(
        "",
        "Bars are 95% intervals; an arrow goes on beyond the plot. Few users make wide bars: look for slices "
        "whose bar leaves 100% on the left.",
        figures,
    )


def _slice_row(report: Report, each: SliceRatio) -> Row:
    what = f"history {each.bin}" if each.by == "history" else f"{each.bin} items"
    said = wording.percent(each.ratio.ratio, each.ratio.ci95)
    label = f"{what}, {each.users:,} users"
    colour = colour_of(report, each.candidate)
    return Row(label, each.ratio.ratio, each.ratio.ci95, said, colour, named=False)


def share_figures(report: Report) -> Figures:
    """Which shelves the recommended places go to."""
    names = dict.fromkeys(name for each in report.candidates for name in each.coverage)
    lengths = dict.fromkeys(name.partition("@")[2] for name in names if name.startswith("head@"))
    figures = []
    for length in lengths:
        bars = [
            (each.name, {shelf: each.coverage.get(f"{shelf}@{length}", 0.0) for shelf in SHELVES}, colour)
            for colour, each in enumerate(report.candidates)
            if f"head@{length}" in each.coverage
        ]
        caption = f"Share of the first {length} places that each shelf of the catalogue gets"
        figures.append(Figure(caption, share_bars(bars, names=SHELVES, title=caption)))
    return Figures("", "", figures)


def change_figures(report: Report) -> Figures:
    """How places of the true next items moved, one histogram per pair."""
    figures = []
    for each in report.sections.rank_changes or []:
        caption = f"{each.candidate}, against {each.against}"
        if each.counts and len(each.edges) == len(each.counts) + 1:
            figures.append(Figure(caption, changes(each, title=f"Change of places: {caption}")))
    return Figures("", "", figures)
