"""One bench from end to end: quality of every candidate, then their speed, then the report."""

from collections.abc import Iterator, Mapping, Sequence

from bench import card
from bench.candidates import Candidate, check_answers, device_of, resolve
from bench.environment import environment, usable_cores
from bench.facts import facts
from bench.latency import Timed, measure
from bench.loads import make_load
from bench.quality import LISTED, Judged, judge, slices_of
from bench.report import files
from bench.report.build import Measured, Setting, build
from bench.report.schema import Report
from bench.samples import draw_samples
from bench.stage import BenchConfig
from recommender.scoring import Scorer
from recommender.stage import Bound, Context, Outputs


def measure_all(config: BenchConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Measure, write report.json, report.md and report.html, and a card into every artifact.

    Raises InputError before anything is measured for what cannot be measured.

    Quality pools the seeds of `context.by_seed`; the scorers of the first seed are timed.
    """
    found = resolve(config.compare, context.by_seed or {context.seed: inputs})
    for candidate in found:
        longest = min(max(*context.evaluation.ks, LISTED, config.k), context.prepared.n_items)
        check_answers(candidate, longest, sampled_negatives=context.evaluation.sampled_negatives)
    threads = config.threads or context.threads or usable_cores()
    judged = _judge(found, context, threads)
    timings, devices = _time(config, found, context, threads)
    report = _report(config, found, judged, timings, devices, context, threads)
    files.write(report, context.folder)
    for bounds in {each.bound.name: each.bounds for each in found}.values():
        card.write(report, bounds)
    return Outputs(metrics={"quality": {each.name: each.quality for each in report.candidates}})


def _judge(found: Sequence[Candidate], context: Context, threads: int) -> dict[str, Judged]:
    """Quality of each candidate; one model is open at a time."""
    judged = {}
    for number, candidate in enumerate(found):
        context.progress(
            "step", {"step": number, "total": len(found), "text": f"quality of {candidate.name}"}
        )
        judged[candidate.name] = judge(
            _opened(candidate, context, threads),
            context.prepared,
            context.split,
            context.evaluation,
            max_length=context.data.max_length,
        )
    context.progress("done", {})
    return judged


def _opened(candidate: Candidate, context: Context, threads: int) -> Iterator[tuple[int, Scorer]]:
    for seed, ref in candidate.refs.items():
        yield seed, ref.open(device=device_of(ref, context.device), threads=threads)


def _time(
    config: BenchConfig, found: Sequence[Candidate], context: Context, threads: int
) -> tuple[list[Timed], dict[str, str]]:
    """Samples of every load and batch size, and the device that each candidate ran on."""
    devices = {each.name: device_of(each.ref, context.device) for each in found}
    scorers = {each.name: each.ref.open(device=devices[each.name], threads=threads) for each in found}
    cells = [(load, batch) for load in config.loads for batch in config.batch_sizes]
    timings = []
    for number, (name, batch) in enumerate(cells):
        context.progress(
            "step", {"step": number, "total": len(cells), "text": f"latency, {name}, batch {batch}"}
        )
        load = make_load(
            name, context.prepared, context.split, batch=batch, rounds=config.rounds,
            max_length=context.data.max_length, seed=context.seed, mask_seen=context.evaluation.mask_seen,
        )  # fmt: skip
        seconds = measure(
            scorers, load.batches, k=min(config.k, context.prepared.n_items), rounds=config.rounds,
            warmup=config.warmup, seed=context.seed, budget_seconds=config.latency_seconds / len(cells),
        )  # fmt: skip
        timings.append(Timed(load, threads, seconds))
    context.progress("done", {})
    return timings, devices


def _report(
    config: BenchConfig, found: Sequence[Candidate], judged: Mapping[str, Judged], timings: Sequence[Timed],
    devices: Mapping[str, str], context: Context, threads: int,
) -> Report:  # fmt: skip
    context.progress("note", {"text": f"bootstrap, {config.draws:,} draws"})
    setting = Setting(
        recipe=str(context.recipe.get("name", "bench")),
        variant=context.variant,
        seeds=list(found[0].bounds),
        command=context.command,
        environment=environment(),
        prepared=context.prepared,
        max_length=context.data.max_length,
        evaluation=context.evaluation,
        threads=threads,
        draws=config.draws,
        seed=context.seed,
    )
    against = next(each.name for each in found if each.bound.name == config.reference)
    first = judged[against]
    return build(
        setting,
        [Measured(each, facts(each), judged[each.name], devices[each.name]) for each in found],
        against,
        slices_of(context.prepared, context.split, first),
        timings,
        draw_samples(judged, context.prepared, context.split, count=config.samples, seed=context.seed),
    )
