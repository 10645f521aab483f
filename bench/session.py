"""One bench from end to end: speed in child processes, then quality in this one, then the report.

Speed comes first because a candidate that crashes or hangs does it in its child: it is never opened here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from bench import card
from bench.attained import roofline_section
from bench.candidates import (
    Candidate,
    check_answers,
    device_of,
    formulas_of,
    left_out,
    not_whole,
    resolve,
    runnable,
)
from bench.child import ChildFailed
from bench.config import BenchConfig
from bench.environment import environment, usable_cores
from bench.facts import facts
from bench.findings import findings
from bench.noise import aa_half_widths
from bench.provenance import provenance
from bench.providers import check_devices
from bench.quality import LISTED, Judged, drawn_users, judge, slices_of, write_ranks
from bench.rank_changes import rank_changes
from bench.report import files
from bench.report.build import Extras, Measured, Setting, build
from bench.report.roofline_parts import Roofline
from bench.report.schema import Report
from bench.roofline import in_words, measure_roofline
from bench.samples import draw_samples
from bench.timing import Timings, time_all
from recommender.errors import InputError, StageError
from recommender.files import read_json
from recommender.profile import DepthProfile
from recommender.scoring import Int64, Scorer
from recommender.stage import Bound, Context, Outputs
from recommender.ways import check_way


@dataclass
class Evidence:
    """What became of the candidates: quality of those that gave any, and why others gave none."""

    judged: dict[str, Judged] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure_all(config: BenchConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Measure, write report.json, report.md and report.html, ranks.parquet, and a card into every artifact.

    Raises InputError before anything is measured for what cannot be measured, StageError when every
    candidate failed. One that fails is named in the report, and the others go on. Quality pools the seeds of
    `context.by_seed`; the scorers of the first seed are timed.
    """
    for way in config.torch:
        check_way(way, context.device)
    check_devices(config.onnxruntime, context.device)
    by_seed = context.by_seed or {context.seed: inputs}
    found = resolve(config.compare, by_seed, config.torch, config.onnxruntime)
    found, foreign = runnable(found, context.device)
    for candidate in found:
        longest = min(max(*context.evaluation.ks, LISTED, config.k), context.prepared.n_items)
        check_answers(candidate, longest, sampled_negatives=context.evaluation.sampled_negatives)
        if config.roofline is not None:
            formulas_of(candidate)  # after all is timed would be late to learn that they cannot be read
    threads = config.threads or context.threads or usable_cores()
    against = next(each.name for each in found if each.bound.name == config.reference)
    timings = time_all(config, found, against, context, threads)
    unshared = left_out(config.compare, by_seed)
    in_parts = not_whole(config.compare, by_seed, config.onnxruntime)
    timings = replace(timings, notes=[*timings.notes, *unshared, *in_parts, *foreign])
    roofline, timings = _roofline(config, found, timings, context)
    users = drawn_users(context.split, config.users, context.seed)
    evidence = _judge(found, timings, context, threads, users)
    if not evidence.judged:
        reasons = "; ".join(f"{name} {text}" for name, text in evidence.failed.items())
        raise StageError(f"every candidate failed: {reasons}", where="bench")
    report = _report(config, found, against, evidence, timings, inputs, context, roofline)
    report = report.model_copy(
        update={"sections": report.sections.model_copy(update={"findings": findings(report)})}
    )
    files.write(report, context.folder)
    write_ranks(evidence.judged, context.folder)
    for bounds in {each.bound.name: each.bounds for each in found}.values():
        card.write(report, bounds)
    return Outputs(metrics=_metrics(report, evidence, timings))


def _roofline(
    config: BenchConfig, found: Sequence[Candidate], timings: Timings, context: Context
) -> tuple[Roofline | None, Timings]:
    """Where the time goes; without it, where the machine could not be measured, and then a note says why.

    It comes after hours of timing and says why, not what: whatever goes wrong with it costs nothing else.
    """
    if config.roofline is None or not any(timed.seconds for timed in timings.cells):
        return None, timings
    try:
        evidence = measure_roofline(config, config.roofline, found, timings, context)
        n_items = context.prepared.n_items
        section = roofline_section(evidence, timings.cells, k=min(config.k, n_items), rows=n_items + 1)
        return section, timings
    except ChildFailed as failure:
        note = f"No roofline was measured: the process that measures the machine {failure.text}."
    except Exception as error:
        note = f"No roofline was measured: {in_words(error)}."
    context.progress("note", {"text": note})
    return None, replace(timings, notes=[*timings.notes, note])


def _judge(
    found: Sequence[Candidate], timings: Timings, context: Context, threads: int, users: Int64 | None = None
) -> Evidence:
    """Quality of each candidate on the test users, or on `users` only; one model is open at a time.

    One that crashed or hung in its child would do it here, and take the bench with it: it is not judged.
    """
    evidence = Evidence({}, {name: failure.text for name, failure in timings.failures.items()})
    for name, text in evidence.failed.items():
        context.progress("note", {"text": f"{name} failed: it {text}"})
    for number, candidate in enumerate(found):
        failure = timings.failures.get(candidate.name)
        if failure is not None and failure.how != "raised":
            continue
        step = {"step": number, "total": len(found), "text": f"quality of {candidate.name}"}
        context.progress("step", step)
        try:
            with _torch_put_back():
                evidence.judged[candidate.name] = judge(
                    _opened(candidate, context, threads),
                    context.prepared,
                    context.split,
                    context.evaluation,
                    max_length=context.data.max_length,
                    users=users,
                )
        except (InputError, StageError):
            raise  # about the request, not about this candidate alone
        except Exception as error:  # whatever a candidate raises is a finding about it
            text = f"raised while it was judged: {type(error).__name__}: {error}"
            evidence.failed.setdefault(candidate.name, text)
            context.progress("note", {"text": f"{candidate.name} failed: it {text}"})
    context.progress("done", {})
    return evidence


@contextmanager
def _torch_put_back() -> Iterator[None]:
    """Opening a checkpoint sets torch's threads, and in one way TF32, for this process, whose later stages
    and candidates are others.
    """
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _opened(candidate: Candidate, context: Context, threads: int) -> Iterator[tuple[int, Scorer]]:
    for seed, ref in candidate.refs.items():
        yield seed, ref.open(device=device_of(ref, context.device), threads=threads)


def _report(
    config: BenchConfig, found: Sequence[Candidate], against: str, evidence: Evidence, timings: Timings,
    inputs: Mapping[str, Bound], context: Context, roofline: Roofline | None = None,
) -> Report:  # fmt: skip
    context.progress("note", {"text": f"bootstrap, {config.draws:,} draws"})
    judged = evidence.judged
    setting = Setting(
        recipe=str(context.recipe.get("name", "bench")),
        variant=context.variant,
        seeds=list(found[0].bounds),
        command=context.command,
        environment=environment(),
        prepared=context.prepared,
        max_length=context.data.max_length,
        evaluation=context.evaluation,
        test_users=len(context.split.targets("test")[0]),
        draws=config.draws,
        seed=context.seed,
        cost=config.cost,
    )
    base = judged.get(against)
    extras = Extras(
        slices=slices_of(context.prepared, context.split, base or next(iter(judged.values()))),
        samples=draw_samples(
            judged, context.prepared, context.split, count=config.samples, seed=context.seed
        ),
        aa_half_widths={} if base is None else aa_half_widths(base, draws=config.draws, seed=context.seed),
        rank_changes=[] if base is None else rank_changes(judged, against),
        depth_profiles=_profiles(config, inputs, context),
        provenance=provenance(found, context.prepared),
        roofline=roofline,
    )
    measured = [
        Measured(each, facts(each), judged.get(each.name), evidence.failed.get(each.name)) for each in found
    ]
    return build(setting, measured, against, timings, extras)


def _profiles(config: BenchConfig, inputs: Mapping[str, Bound], context: Context) -> list[DepthProfile]:
    """The depth profiles that are named, of every seed; one that seeds share stands there once."""
    by_seed = context.by_seed or {context.seed: inputs}
    folders = dict.fromkeys(bounds[name].path for name in config.profiles for bounds in by_seed.values())
    return [DepthProfile.model_validate(read_json(folder / "profile.json")) for folder in folders]


def _metrics(report: Report, evidence: Evidence, timings: Timings) -> dict[str, object]:
    """What stage.json keeps: quality, what failed, and what opening and warming up took, in seconds."""
    return {
        "quality": {each.name: each.quality for each in report.candidates},
        "failed": evidence.failed,
        "opening_seconds": dict(timings.opening_seconds),
        "warming_seconds": dict(timings.warming_seconds),
    }
