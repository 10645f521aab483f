"""The roofline itself: what calls attain against FLOPs per byte, below what the machine allows."""

from markupsafe import Markup

from bench.report import wording
from bench.report.blocks import Figure, Figures
from bench.report.plot_lines import Line, Look, lines
from bench.report.roofline_parts import Machine, RooflineRow
from bench.report.schema import Report
from bench.report.svg import COLOURS
from bench.report.table import colour_of

ROOF_COLOUR = COLOURS - 1
ROOM = 2.0
"""How far the roof goes beyond the outermost points, and beyond its ridge."""


def roofline_figures(report: Report) -> Figures:
    """One plot per load; none where no FLOPs are known."""
    found = report.sections.roofline
    if found is None:
        return Figures("", "", [])
    figures = []
    for load in dict.fromkeys(row.load for row in found.rows):
        rows = [row for row in found.rows if row.load == load and row.intensity and row.flops]
        if rows:
            caption = f"Roofline, {wording.load(load)}, {wording.threads(found.machine.threads)}"
            figures.append(Figure(caption, _plot(report, rows, found.machine, caption)))
    return Figures(
        "",
        "The line is the machine: memory bandwidth on the slope, the best fp32 matrix product on the level. "
        "A mark is a call, with its batch size; the nearer to the line, the less is left to gain.",
        figures,
    )


def _plot(report: Report, rows: list[RooflineRow], machine: Machine, caption: str) -> Markup:
    series = [Line("machine", _roof(rows, machine), ROOF_COLOUR, hollow=True)]
    for name in dict.fromkeys(row.candidate for row in rows):
        own = sorted((row for row in rows if row.candidate == name), key=lambda row: row.intensity or 0.0)
        points = [
            (row.intensity, row.flops / row.time_ms / 1e6) for row in own if row.intensity and row.flops
        ]
        series.append(Line(name, points, colour_of(report, name), notes=[str(row.batch) for row in own]))
    look = Look("FLOPs per byte (log scale)", "GFLOP/s (log scale)")
    return lines(series, look, title=caption)


def _roof(rows: list[RooflineRow], machine: Machine) -> list[tuple[float, float]]:
    """(FLOPs per byte, GFLOP/s): from left of all points over the ridge to right of them."""
    ridge = machine.gemm / machine.bandwidth
    places = [row.intensity for row in rows if row.intensity]
    low, high = min(*places, ridge) / ROOM, max(*places, ridge) * ROOM
    return [(low, low * machine.bandwidth / 1e9), (ridge, machine.gemm / 1e9), (high, machine.gemm / 1e9)]
