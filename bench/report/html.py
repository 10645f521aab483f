"""The report as one HTML file without scripts, network or outside files; every text in it is escaped."""

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report import wording
from bench.report.markdown import facts
from bench.report.plot import Point, scatter
from bench.report.schema import Comparison, Pareto, Report
from bench.report.tables import key_name, tables


def to_html(report: Report) -> str:
    """The whole page."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # everywhere, whatever the template is called
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html.jinja").render(
        report=report,
        cards=cards(report),
        facts=facts(report.environment),
        plots=plots(report),
        tables=tables(report),
        wording=wording,
    )


class Card(NamedTuple):
    """What one candidate kept and won: (figure, what it is, `better` | `worse` | nothing)."""

    candidate: str
    against: str
    figures: list[tuple[str, str, str]]


def cards(report: Report) -> list[Card]:
    """One per comparison: quality kept, speed-up at the smallest and largest batch, size."""
    return [Card(each.candidate, each.against, _figures(report, each)) for each in report.comparisons]


def _figures(report: Report, comparison: Comparison) -> list[tuple[str, str, str]]:
    figures = []
    key = key_name(report)
    if (found := comparison.quality.get(key)) is not None:
        spread = f", {found.ci95[0]:.0%} to {found.ci95[1]:.0%}" if found.ci95 else ""
        what = f"of {wording.metric(key, report.evaluation)}{spread}"
        figures.append((f"{found.ratio:.1%}", what, wording.tone(found)))
    speed = [each for each in comparison.speedup if each.load == "real"] or comparison.speedup
    for each in {each.batch: each for each in (*speed[:1], *speed[-1:])}.values():
        spread = f", {' to '.join(map(wording.decimals, each.ci95))}" if each.ci95 else ""
        figures.append((wording.times(each.ratio), f"speed, batch {each.batch}{spread}", ""))
    if comparison.size_ratio is not None:
        figures.append((wording.times(comparison.size_ratio), "size", ""))
    return figures


def plots(report: Report) -> list[tuple[str, Markup]]:
    """(caption, SVG) for each batch size of the load that comes nearest to real traffic."""
    pareto = report.sections.pareto or []
    loads = [name for name in ("real", "full", "open-loop") if any(each.load == name for each in pareto)]
    return [_plot(report, each) for each in pareto if each.points and each.load == loads[0]]


def _plot(report: Report, pareto: Pareto) -> tuple[str, Markup]:
    caption = f"Batch {pareto.batch}, {wording.load(pareto.load)}, {pareto.threads} threads"
    label = wording.metric(pareto.metric, report.evaluation)
    points = [
        Point(
            label=each.candidate,
            x=each.users_per_second,
            y=each.quality,
            x_ci95=each.users_per_second_ci95,
            y_ci95=each.quality_ci95,
            shape="diamond" if each.kind == "artifact" else "circle",
        )
        for each in pareto.points
    ]
    title = f"{label} against users per second. {caption}"
    return caption, scatter(points, x_label="users per second (log scale)", y_label=label, title=title)
