"""Figures of a depth profile: influence of blocks, cost of cuts, the greedy order, quality against depth."""

from collections.abc import Iterator

from bench.report import wording
from bench.report.blocks import Figure, Figures
from bench.report.depth_tables import depth_metric, how
from bench.report.plot_bars import block_bars
from bench.report.plot_heat import cut_map
from bench.report.plot_lines import Line, Look, lines
from bench.report.schema import Report
from recommender.profile import DepthProfile


def profile_figures(report: Report, profile: DepthProfile) -> Figures:
    """All of one body."""
    return Figures("", "", list(_figures(report, profile)))


def _figures(report: Report, profile: DepthProfile) -> Iterator[Figure]:
    if profile.block_influence:
        caption = "Influence of each block; the smallest is marked"
        bars = block_bars(profile.block_influence, y_label="block influence", title=caption)
        yield Figure(caption, bars)
    if profile.cuts:
        blocks = max(profile.blocks, *(cut.first + cut.length for cut in profile.cuts))
        caption = "Angular distance of every contiguous cut; the cheapest of each length has a frame"
        yield Figure(caption, cut_map(profile.cuts, blocks, title=caption))
    if len(profile.greedy) > 0:
        yield _greedy(profile)
    if (found := _depths(report, profile)) is not None:
        yield found


def _greedy(profile: DepthProfile) -> Figure:
    """Validation loss while blocks go, one after the other."""
    losses = [profile.validation_loss, *(step.validation_loss for step in profile.greedy)]
    steps = [(float(place), loss) for place, loss in enumerate(losses)]
    named = len(steps) <= 13
    notes = ["", *(str(step.block) if named else "" for step in profile.greedy)]
    caption = "Loss while blocks go in the greedy order"
    caption += "; figures at the marks are the blocks" if named else ""
    ticks = [x for x, _ in steps][:: -(-len(steps) // 12)]
    if ticks[-1] != steps[-1][0]:
        ticks[-1] = steps[-1][0]
    look = Look("blocks gone", "validation loss", log_x=False, log_y=False, x_ticks=ticks)
    return Figure(caption, lines([Line("", steps, 3, notes=notes)], look, title=caption))


def _depths(report: Report, profile: DepthProfile) -> Figure | None:
    key = depth_metric(report, profile)
    series = []
    groups = dict.fromkeys((not d.retrained, d.order, how(d)) for d in profile.depths)
    several = len({order for _, order, _ in groups}) > 1
    for number, (untrained, order, name) in enumerate(sorted(groups, key=str), 1):
        chosen = [d for d in profile.depths if (d.order, how(d)) == (order, name)]
        points = sorted(
            (float(d.blocks), d.quality[key]) for d in chosen if key in d.quality and d.blocks > 0
        )
        label = f"{name}, {order}" if several and order else name
        if points:
            series.append(Line(label, points, number, hollow=untrained))
    kept = sorted({x for each in series for x, _ in each.points})
    if len(kept) < 2:
        return None
    label = wording.metric(key, report.evaluation)
    caption = f"Validation {label} against blocks kept"
    look = Look("blocks kept (log scale)", label, log_y=False, x_ticks=_sparse(kept))
    return Figure(caption, lines(series, look, title=caption))


def _sparse(values: list[float]) -> list[float]:
    """Ends, and those between that are half as much again as the one before."""
    found = [values[0]]
    for value in values[1:-1]:
        if value >= 1.5 * found[-1] and value * 1.3 <= values[-1]:
            found.append(value)
    return [*found, values[-1]]
