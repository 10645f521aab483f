"""What stands where in a report: the sections in reading order, each only where something was measured."""

from collections.abc import Iterator, Sequence

from bench.report.blocks import Block, Bullets, Command, Facts, Figures, Samples, Section
from bench.report.cost_tables import candidate_table, cost_table, energy_table, smaller_tables, training_table
from bench.report.depth_figures import profile_figures
from bench.report.depth_tables import profile_tables
from bench.report.figures import change_figures, kept_figures, pareto_figures, share_figures, slice_figures
from bench.report.origin import environment_facts, origin_blocks
from bench.report.quality_tables import (
    change_table,
    compared_tables,
    coverage_table,
    quality_table,
    slice_tables,
)
from bench.report.roofline_figures import roofline_figures
from bench.report.roofline_tables import bound_table, gpu_table, machine_table, missing_lines, split_table
from bench.report.schema import Report
from bench.report.speed_figures import batch_figures, rate_figures
from bench.report.speed_tables import device_tables, latency_tables, saturation_table, speed_tables
from bench.report.table import Table

FINDINGS = {"holds": "Holds", "fails": "Fails", "open": "Open"}


def sections(report: Report) -> list[Section]:
    """All sections that have something in them."""
    found = [*_results(report), *_costs(report), *_depth(report), *_end(report)]
    full = [each._replace(blocks=[block for block in each.blocks if not _empty(block)]) for each in found]
    return [each for each in full if each.blocks]


def _empty(block: Block) -> bool:
    match block:
        case Table():
            return not block.rows or len(block.header) < 2
        case Figures():
            return not block.figures
        case Bullets():
            return not block.lines
        case Samples():
            return not block.samples
        case Command():
            return not block.text
        case Facts():
            return not block.pairs
        case _:
            return not block.nodes


def _results(report: Report) -> Iterator[Section]:
    failed = [f"{each.name}: {each.failed}" for each in report.candidates if each.failed]
    note = "They crashed or hung while they were measured: what is missing is a dash. The others went on."
    yield Section("failed", "Candidates that failed", note, [Bullets("", failed, "fails")])
    yield Section("findings", "Findings", "", findings(report))
    yield Section("against-speed", "Quality against speed", "", [pareto_figures(report)])
    yield Section("kept", "Quality kept, speed won", "", [kept_figures(report)])
    yield Section("candidates", "Candidates", "", [candidate_table(report), *smaller_tables(report)])
    yield Section("quality", "Ranking quality", "", [quality_table(report), *compared_tables(report)])
    note = "A compression that is free on average may ruin the tail or the short histories."
    yield Section("slices", "Slices", note, [slice_figures(report), *slice_tables(report)])
    blocks: list[Block] = [share_figures(report), coverage_table(report)]
    yield Section("coverage", "Coverage and popularity bias", "", blocks)
    note = "A mean that stays may hide that half of the users got worse and the other half better."
    yield Section("changes", "Who wins and who loses", note, [change_figures(report), change_table(report)])


def findings(report: Report) -> list[Block]:
    """What holds, what fails, what stays open: each as visible as the others."""
    found = report.sections.findings or []
    return [
        Bullets(title, [each.text for each in found if each.kind == kind], kind)
        for kind, title in FINDINGS.items()
    ]


def _costs(report: Report) -> Iterator[Section]:
    closed = [table for table in latency_tables(report) if not table.title.startswith("Latency under load")]
    loaded = [table for table in latency_tables(report) if table.title.startswith("Latency under load")]
    blocks: list[Block] = [batch_figures(report), *speed_tables(report), *closed, *device_tables(report)]
    yield Section("speed", "Speed", "", blocks)
    blocks = [rate_figures(report), saturation_table(report), *loaded]
    yield Section("load", "Load at a rate", "", blocks)
    yield from _roofline(report)
    cost = report.sections.cost
    blocks = [energy_table(report)]
    if cost is not None and cost.rows:
        blocks += [cost_table(cost), Bullets("Assumptions", cost.assumptions)]
    yield Section("cost", "Energy and cost", "", blocks)
    yield Section("training", "Training", "", training_table(report))


def _roofline(report: Report) -> Iterator[Section]:
    found = report.sections.roofline
    if found is None:
        return
    note = (
        "The least that a call has to compute and to read, against what this machine can do at best, and "
        "the parts that the time goes to. Calls were taken apart after everything else, in processes of "
        "their own."
    )
    yield Section("roofline", "Where the time goes", note, [
        Bullets("Why it is not faster", [f"{each.candidate}: {each.text}" for each in found.reasons]),
        roofline_figures(report),
        bound_table(found),
        split_table(found),
        machine_table(found),
        gpu_table(found),
        Bullets("Not known", missing_lines(found)),
        Bullets("How far to trust it", found.cautions),
    ])  # fmt: skip


def _depth(report: Report) -> Iterator[Section]:
    profiles = report.sections.depth_profile or []
    for number, profile in enumerate(profiles, 1):
        note = (
            f"{profile.blocks} blocks, seed {profile.seed}, measured on the training histories of "
            f"{profile.users:,} users. Which blocks are redundant on these data: small influence, small "
            "distance, late loss."
        )
        anchor = "depth" if len(profiles) == 1 else f"depth-{number}"
        blocks: list[Block] = [profile_figures(report, profile), *profile_tables(report, profile)]
        yield Section(anchor, f"Depth profile of {profile.of}", note, blocks)


def _end(report: Report) -> Iterator[Section]:
    note = "What the user really chose next is marked where a candidate lists it."
    samples = report.sections.samples or []
    yield Section("samples", "Recommendations to a few test users", note, [Samples(samples)])
    yield Section("notes", "How to read this", "", [Bullets("", notes(report))])
    yield Section("origin", "Where this comes from", "", [
        *origin_blocks(report),
        Command("Command", report.command),
        Facts("Environment", environment_facts(report.environment)),
    ])  # fmt: skip


def notes(report: Report) -> Sequence[str]:
    """Those of the report, and what a page cannot show."""
    extra = sorted(report.sections.model_extra or {})
    known = list(report.sections.notes or [])
    if extra:
        known.append(f"report.json has further parts that this page does not show: {', '.join(extra)}.")
    return known
