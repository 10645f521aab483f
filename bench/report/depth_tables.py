"""Tables of a depth profile: what each block does, the cheapest cuts, quality against blocks kept."""

from collections.abc import Sequence
from itertools import groupby

from bench.report import wording
from bench.report.schema import Report
from bench.report.table import Table, row, without_empty_columns
from recommender.profile import Depth, DepthProfile


def profile_tables(report: Report, profile: DepthProfile) -> list[Table]:
    """All of one body."""
    return [block_table(profile), cut_table(profile), depth_table(report, profile)]


def block_table(profile: DepthProfile) -> Table:
    """Influence of each block, and when the greedy order takes it away."""
    removed = {step.block: (place, step) for place, step in enumerate(profile.greedy, 1)}
    rows = []
    for block, influence in enumerate(profile.block_influence):
        place, step = removed.get(block, (None, None))
        rows.append(
            row(
                str(block),
                f"{influence:.4f}",
                wording.ABSENT if place is None else str(place),
                wording.ABSENT if step is None else f"{step.validation_loss:.4f}",
            )
        )
    table = Table(
        "Blocks",
        "Influence: 1 - mean cosine between the streams before and after the block (ShortGPT). Removed: when "
        "the greedy order takes it away, and the validation loss without it and all before it; with all "
        f"blocks the loss is {profile.validation_loss:.4f}.",
        ("block", "influence", "removed as number", "loss then"),
        rows,
    )
    return without_empty_columns(table, wording.ABSENT)


def cut_table(profile: DepthProfile) -> Table:
    """The contiguous cut of each length that turns the stream least."""
    lengths = sorted({cut.length for cut in profile.cuts})
    best = [min((c for c in profile.cuts if c.length == n), key=lambda c: c.distance) for n in lengths]
    return Table(
        "Cheapest contiguous cuts",
        "Angular distance between the streams before and after the cut, in half turns; every cut is in "
        "report.json.",
        ("blocks that go", "which", "distance"),
        [
            row(str(cut.length), ranges(range(cut.first, cut.first + cut.length)), f"{cut.distance:.4f}")
            for cut in best
        ],
    )


def depth_table(report: Report, profile: DepthProfile) -> Table:
    """Validation quality of bodies that keep some of their blocks."""
    key = depth_metric(report, profile)
    label = wording.metric(key, report.evaluation)
    rows = [
        row(
            str(each.blocks),
            how(each),
            each.order or wording.ABSENT,
            ranges(each.kept),
            wording.quality(each.quality.get(key)),
            wording.count(each.body_parameters),
            wording.duration(each.seconds_per_epoch),
        )
        for each in sorted(profile.depths, key=lambda each: (each.blocks, each.retrained, each.order or ""))
    ]
    users = "" if profile.validation_users is None else f", {profile.validation_users:,} users"
    table = Table(
        "Quality against blocks kept",
        f"Validation part{users}. Cut only: blocks taken out, final norm applied, nothing trained. {label} "
        "of the whole body is in the rows that keep all blocks.",
        ("blocks kept", "how", "chosen by", "which", label, "body", "per epoch"),
        rows,
    )
    return without_empty_columns(table, wording.ABSENT)


def how(each: Depth) -> str:
    """Cut only, or trained again, and what the training started from."""
    if not each.retrained:
        return "cut only"
    return "trained again" + (f" from {each.init}" if each.init else "")


def depth_metric(report: Report, profile: DepthProfile) -> str:
    """NDCG@10, else the first metric that every depth has."""
    wanted = f"ndcg@{10 if 10 in report.evaluation.ks else max(report.evaluation.ks, default=10)}"
    known = [set(each.quality) for each in profile.depths]
    if not known or all(wanted in names for names in known):
        return wanted
    shared = [name for name in profile.depths[0].quality if all(name in names for names in known)]
    return shared[0] if shared else wanted


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 7, 9-10."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
