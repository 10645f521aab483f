"""What the numbers of a report say, in sentences: also, and first of all, what speaks against a candidate."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from bench.quality import key_metric
from bench.report import wording
from bench.report.parts import Finding, QualityRatio, SliceRatio, Zeros
from bench.report.schema import CandidateReport, Comparison, Report, Speedup

NON_INFERIOR = 0.97
"""Share of the reference's quality whose lower bound makes a candidate non-inferior."""

RUINED = 0.95
"""A slice whose whole interval lies below this share is told, whatever the mean says."""

BIAS = 0.02
"""Growth of the head's share of recommended places that is told (coverage has no interval)."""

SAME_QUALITY = 1e-3
"""Relative difference of a metric up to which an artifact and its checkpoint count as equal."""

QUIET = 0.05
"""A/A floor above which the machine was not quiet enough for small speed-ups."""


def findings(report: Report) -> list[Finding]:
    """Sentences on failures, then on each comparison, then on artifacts, trainings and the measuring itself.

    `holds`: the interval allows the claim. `fails`: it does not, or the numbers speak against the candidate.
    `open`: this bench cannot tell. Read from the report alone: no name has a meaning here.
    """
    key = key_metric(report.evaluation.ks)
    found = list(_failed(report))
    for comparison in report.comparisons:
        found += _quality(report, comparison, key)
        found += _slices(report, comparison, key)
        found += _popularity(report, comparison)
        found += _speed(comparison)
    found += _artifacts(report)
    found += _zeros(report)
    found += _trainings(report, key)
    found += _measuring(report)
    return found


def _failed(report: Report) -> Iterator[Finding]:
    for each in report.candidates:
        if each.failed is not None:
            yield _fails(f"{each.name} could not be measured to the end: {each.failed.rstrip('.')}.")


def _quality(report: Report, comparison: Comparison, key: str) -> Iterator[Finding]:
    """Non-inferior or not: the lower bound of the ratio against `NON_INFERIOR`."""
    found = comparison.quality.get(key)
    if found is None:
        return
    name, of = comparison.candidate, f"the {wording.metric(key, report.evaluation)} of {comparison.against}"
    kept, wanted = _spread(found), f"{NON_INFERIOR:.0%}"
    noise = _noise(found, comparison.against)
    if found.ci95 is None:
        yield _open(
            f"Whether {name} keeps {wanted} of {of} is open: {kept}, but the users are too few for an "
            f"interval.{noise}"
        )
    elif found.ci95[0] > 1:
        yield _holds(f"{name} is better than {comparison.against}: {kept} of {of}.{noise}")
    elif found.ci95[0] > NON_INFERIOR:
        margin = f"within {1 - NON_INFERIOR:.0%}"
        yield _holds(
            f"{name} is not worse than {comparison.against}, {margin}: it keeps {kept} of {of}.{noise}"
        )
    elif found.ci95[1] < NON_INFERIOR:
        yield _fails(f"{name} is worse than {comparison.against}: it keeps {kept} of {of}.{noise}")
    else:
        yield _fails(
            f"{name} is not shown to keep {wanted} of {of}: {kept}, and the interval reaches below.{noise}"
        )


def _spread(found: QualityRatio) -> str:
    if found.ci95 is None:
        return f"{found.ratio:.1%}"
    return f"{found.ratio:.1%} (95% interval {found.ci95[0]:.1%} to {found.ci95[1]:.1%})"


def _noise(found: QualityRatio, against: str) -> str:
    """How far another seed of the reference lies, where that was measured."""
    if found.aa_half_width is None:
        return ""
    within = abs(found.ratio - 1) <= found.aa_half_width
    more = ", as much as this difference or more" if within else ""
    return f" Two seeds of {against} lie up to {found.aa_half_width:.1%} apart{more}."


def _slices(report: Report, comparison: Comparison, key: str) -> Iterator[Finding]:
    """Slices that lose for sure; where the mean loses too, those that for sure lose more than it does."""
    mean = comparison.quality.get(key)
    holds = mean is not None and mean.ci95 is not None and mean.ci95[0] > NON_INFERIOR
    limit = RUINED if mean is None or holds else min(RUINED, mean.ratio)
    bad = [
        _slice(each)
        for each in report.sections.slice_ratios or ()
        if (each.candidate, each.against) == (comparison.candidate, comparison.against)
        and each.ratio.ci95 is not None
        and each.ratio.ci95[1] < limit
    ]
    if bad:
        lead = "though its mean holds, some users lose" if holds else "some users lose more than others"
        yield _fails(
            f"{comparison.candidate}: {lead}; of the {wording.metric(key, report.evaluation)} of "
            f"{comparison.against} it keeps {', '.join(bad)}."
        )


def _slice(each: SliceRatio) -> str:
    of = f"with {each.bin} items of history" if each.by == "history" else f"where a {each.bin} item is next"
    return f"{wording.percent(each.ratio.ratio, each.ratio.ci95)} {of} ({each.users:,} users)"


def _popularity(report: Report, comparison: Comparison) -> Iterator[Finding]:
    """More of the most popular items in the lists than the reference shows."""
    known = {each.name: each for each in report.candidates}
    if not {comparison.candidate, comparison.against} <= known.keys():
        return
    new, old = known[comparison.candidate].coverage, known[comparison.against].coverage
    head = next((name for name in new if name.startswith("head@") and name in old), None)
    if head is None or new[head] - old[head] <= BIAS:
        return
    k = head.partition("@")[2]
    shown = f"items@{k}"
    items = (
        f"; it shows {new[shown]:,.0f} different items instead of {old[shown]:,.0f}"
        if shown in new and shown in old
        else ""
    )
    yield _fails(
        f"{comparison.candidate} leans more on popular items than {comparison.against}: {new[head]:.1%} "
        f"instead of {old[head]:.1%} of its top {k} are among the most popular fifth{items}."
    )


def _speed(comparison: Comparison) -> Iterator[Finding]:
    """One sentence for the cells where it is faster, one where it is slower, one where nobody can tell."""
    groups: dict[str, list[Speedup]] = {"faster": [], "slower": [], "open": []}
    for each in comparison.speedup:
        groups[_side(each)].append(each)
    name, against = comparison.candidate, comparison.against
    if groups["faster"]:
        yield _holds(f"{name} is faster than {against}: {_cells(groups['faster'])}.")
    if groups["slower"]:
        yield _fails(f"{name} is slower than {against}: {_cells(groups['slower'])}.")
    if groups["open"]:
        yield _open(
            f"Whether {name} is faster than {against} is open, within the noise of timing: "
            f"{_cells(groups['open'])}."
        )


def _side(found: Speedup) -> Literal["faster", "slower", "open"]:
    """Which side of 1 the whole interval lies on, beyond what two processes of one model differ by."""
    tone = wording.speed_tone(found)
    return "faster" if tone == "better" else "slower" if tone == "worse" else "open"


def _cells(found: Sequence[Speedup]) -> str:
    threads = {each.threads for each in found}
    said: dict[str, list[str]] = {}
    for each in found:
        where = f"batch {each.batch}" + (f" and {each.threads} threads" if len(threads) > 1 else "")
        spread = each.ci95 if _side(each) == "open" else None  # where it is sure, the table has it
        without = "" if each.ci95 else ", without an interval"
        said.setdefault(each.load, []).append(f"{wording.times(each.ratio, spread)} at {where}{without}")
    return "; ".join(f"{', '.join(cells)} ({wording.load(load)})" for load, cells in said.items())


def _artifacts(report: Report) -> Iterator[Finding]:
    """An artifact beside the checkpoint that it was made from, where both were measured."""
    known = {each.name: each for each in report.candidates}
    for each in report.candidates:
        parent = known.get(each.of or "")
        if each.kind != "artifact" or parent is None:
            continue
        gap = {
            metric: abs(value - parent.quality[metric]) / parent.quality[metric]
            for metric, value in each.quality.items()
            if parent.quality.get(metric)
        }
        if not gap:
            continue
        worst = max(gap, key=lambda metric: gap[metric])
        if gap[worst] <= SAME_QUALITY:
            yield _holds(
                f"The artifact {each.name} ranks as {parent.name} does: no metric differs by more than "
                f"{SAME_QUALITY:.1%}."
            )
        else:
            values = _beside(worst, each, parent)
            yield _fails(
                f"The artifact {each.name} does not rank as {parent.name} does: "
                f"{wording.metric(worst, report.evaluation)} {values}."
            )


DENSE = ("torch", "onnxruntime", "aot")
"""Runtimes that store and multiply zeros like any other number."""


def _zeros(report: Report) -> Iterator[Finding]:
    """Zeros among weights bring nothing where they are stored and multiplied densely."""
    for each in report.candidates:
        if each.zeros is None or (why := _unused(each.runtime, each.zeros)) is None:
            continue
        shares = [(each.zeros.of_body_parameters, "its body"), (each.zeros.of_everything, "everything")]
        of = ", ".join(f"{share:.0%} of {whole}" for share, whole in shares if share is not None)
        more = f" ({of})" if of else ""
        said = (
            f"{each.name}: {each.zeros.of_body_matrices:.0%} of the weights in the matrices of its blocks "
            f"are zeros{more}, which save neither time nor memory here: {why}"
        )
        yield _fails(said)


def _unused(runtime: str, zeros: Zeros) -> str | None:
    """Why zeros bring nothing in a runtime; None where they may, or nobody knows."""
    if runtime in DENSE:
        gpu = " 2:4 is for the sparse tensor cores of a GPU (TensorRT, cuSPARSELt)."
        more = gpu if zeros.pattern == "2:4" else ""
        return f"{runtime} stores and multiplies them like any other number.{more}"
    if zeros.sparse_kernels is False:
        mend = (
            "export it again with `tensorrt: {sparse: true}`"
            if zeros.pattern == "2:4"
            else "no kernel has any use for zeros that do not lie 2:4"
        )
        return f"the engine was built without kernels for them (sparse: false); {mend}."
    return None


def _trainings(report: Report, key: str) -> Iterator[Finding]:
    """Trained from another candidate, and no better than it."""
    known = {each.name: each for each in report.candidates}
    for each in report.candidates:
        parent = known.get(each.of or "")
        if each.train is None or parent is None or not {key} <= each.quality.keys() & parent.quality.keys():
            continue
        if each.quality[key] <= parent.quality[key]:
            spent = f" for {wording.duration(each.train.seconds)}" if each.train.seconds else ""
            yield _fails(
                f"{each.name} was trained{spent} from {parent.name} and is no better: "
                f"{wording.metric(key, report.evaluation)} {_beside(key, each, parent)}."
            )


def _beside(metric: str, each: CandidateReport, other: CandidateReport) -> str:
    return f"{wording.quality(each.quality[metric])} against {wording.quality(other.quality[metric])}"


def _measuring(report: Report) -> Iterator[Finding]:
    """How far the bench itself can be trusted."""
    if report.comparisons and (lead := _one_training(report)):
        yield _open(
            f"{lead}: the intervals are over users only; how far another training of the same model would "
            "lie was not measured."
        )
    cells = [each for comparison in report.comparisons for each in comparison.speedup]
    if any(each.aa_floor is None for each in cells):
        yield _open(
            "No A/A floor was measured for some speed-ups: how far two processes differ is not known."
        )
    loud = {(each.load, each.batch): each.noise for each in cells if (each.noise or 0) > QUIET}
    if loud:
        where = ", ".join(
            f"{floor:.1%} at batch {batch} ({wording.load(load)})" for (load, batch), floor in loud.items()
        )
        yield _fails(
            f"The machine was not quiet: the same model in two processes may differ by {where}; speed-ups "
            "below that say nothing."
        )


def _one_training(report: Report) -> str | None:
    """In words, why no two trainings of the reference were seen; None where they were."""
    if len(report.seeds) == 1:
        return "One seed"
    against = report.comparisons[0].against
    found = next((each.quality_by_seed for each in report.candidates if each.name == against), [])
    different = {tuple(sorted((each.model_extra or {}).items())) for each in found}
    return f"{against} is the same with every seed" if len(different) == 1 else None


def _say(kind: Literal["holds", "fails", "open"]) -> Callable[[str], Finding]:
    return lambda text: Finding(kind=kind, text=text)


_holds, _fails, _open = _say("holds"), _say("fails"), _say("open")
