"""card.md of an artifact: what it is and what was measured of it, from the report."""

from collections.abc import Mapping

from bench.report import wording
from bench.report.markdown import markdown_table, plain
from bench.report.origin import environment_facts
from bench.report.quality_tables import compared_tables, quality_table, slice_tables
from bench.report.schema import CandidateReport, Report
from bench.report.speed_tables import latency_tables, speed_tables
from recommender.files import write_text
from recommender.stage import Bound


def write(report: Report, bounds: Mapping[int, Bound]) -> None:
    """Write card.md into the artifact of every seed; a checkpoint gets none."""
    for seed, bound in bounds.items():
        if bound.kind == "artifact":
            write_text(bound.path / "card.md", to_card(report, bound.name, seed))


def to_card(report: Report, name: str, seed: int) -> str:
    """The card of the artifact `name` (all its variants) that was made with `seed`."""
    own = [each for each in report.candidates if each.name == name or each.name.startswith(f"{name}:")]
    names = {each.name for each in own}
    part = report.model_copy(
        update={
            "candidates": own,
            "comparisons": [each for each in report.comparisons if each.candidate in names],
        }
    )
    tables = [
        quality_table(part),
        *compared_tables(part),
        *speed_tables(part),
        *latency_tables(part),
        *slice_tables(part),
    ]
    sections = [_head(report, name, own, seed), *(markdown_table(table) for table in tables if table.rows)]
    lines = "\n".join(f"- {key}: {plain(value)}" for key, value in environment_facts(report.environment))
    notes = "\n".join(f"- {plain(note)}" for note in report.sections.notes or [])
    sections += [f"## Measured on\n\n{lines}", f"## How to read this\n\n{notes}"]
    return "\n\n".join(sections) + "\n"


def _head(report: Report, name: str, own: list[CandidateReport], seed: int) -> str:
    data = report.dataset
    seeds = (
        f"; quality is the mean over seeds {', '.join(map(str, report.seeds))}"
        if len(report.seeds) > 1
        else ""
    )
    lines = [
        f"# {plain(name)}",
        f"A sequential recommender for {data.items:,} items of {plain(data.name)}, made by the recipe "
        f"{plain(report.recipe)} (seed {seed}{seeds}).",
    ]
    if own[0].of:
        lines.append(f"Made from {plain(own[0].of)}.")
    sizes = [f"- {plain(each.name)}: {each.runtime}, {wording.size(each.size_bytes)}" for each in own]
    return "\n\n".join([*lines, "\n".join(sizes)])
