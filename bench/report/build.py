"""Puts what was measured into one report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bench.candidates import Candidate
from bench.compare import Resampled, resample
from bench.config import CostSettings
from bench.cost import cost_card
from bench.facts import Facts
from bench.latency import speedup
from bench.quality import Judged, key_metric
from bench.report.cells import pareto, quality_ratio, slice_ratios
from bench.report.notes import notes
from bench.report.parts import Provenance, RankChange, Sample, Saturation
from bench.report.roofline_parts import Roofline
from bench.report.schema import (
    CandidateReport,
    Comparison,
    Dataset,
    Environment,
    Evaluation,
    Report,
    Sections,
    SeedQuality,
    Slice,
)
from bench.slices import Members
from bench.sparse_kernels import with_kernels
from bench.timing import Timings
from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared
from recommender.profile import DepthProfile


@dataclass(frozen=True)
class Measured:
    """One candidate, what its folders say, its quality, and why any of its measurements are missing."""

    candidate: Candidate
    facts: Facts
    judged: Judged | None
    failed: str | None

    @property
    def name(self) -> str:
        """Of the candidate."""
        return self.candidate.name


@dataclass(frozen=True)
class Setting:
    """What holds for the whole report."""

    recipe: str
    variant: str | None
    seeds: Sequence[int]
    command: str
    environment: Environment
    prepared: Prepared
    max_length: int
    evaluation: EvaluationConfig
    test_users: int  # all that could be ranked
    draws: int
    seed: int
    cost: CostSettings | None = None


@dataclass(frozen=True)
class Extras:
    """What was found out besides, ready for its place."""

    slices: Sequence[Members]
    samples: Sequence[Sample]
    aa_half_widths: Mapping[str, float] = field(default_factory=dict)  # of the reference, by metric
    rank_changes: Sequence[RankChange] = ()
    depth_profiles: Sequence[DepthProfile] = ()
    provenance: Provenance | None = None
    roofline: Roofline | None = None


def build(
    setting: Setting, measured: Sequence[Measured], against: str, timings: Timings, extras: Extras
) -> Report:
    """The report of a bench: every candidate, and each one but `against` compared with `against`.

    At least one candidate has to have been judged.
    """
    judged = {each.name: each.judged for each in measured if each.judged is not None}
    metrics = {name: each.per_user for name, each in judged.items()}
    draws, seed = setting.draws, setting.seed
    resampled = resample(metrics, draws=draws, seed=seed)
    base = next(each for each in measured if each.name == against)
    key = key_metric(setting.evaluation.ks)
    found = [_candidate(each, extras.slices, timings) for each in measured]
    compared = [
        _comparison(each, base, resampled, timings, extras, setting) for each in measured if each is not base
    ]
    points = pareto(
        timings.cells, [each.candidate for each in measured], judged, resampled, key, draws=draws, seed=seed
    )
    failed = {each.name: each.failed for each in measured if each.failed is not None}
    return Report(
        recipe=setting.recipe,
        variant=setting.variant,
        seeds=list(setting.seeds),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=setting.command,
        environment=setting.environment,
        dataset=_dataset(setting),
        evaluation=_evaluation(setting, users=len(next(iter(judged.values())).users)),
        candidates=found,
        comparisons=compared,
        sections=Sections(
            pareto=list(points),
            slice_ratios=slice_ratios(metrics, against, extras.slices, key, draws=draws, seed=seed),
            samples=list(extras.samples),
            rank_changes=list(extras.rank_changes) or None,
            depth_profile=list(extras.depth_profiles) or None,
            saturation=_saturation(timings),
            cost=None if setting.cost is None else cost_card(found, setting.cost),
            roofline=extras.roofline,
            provenance=extras.provenance,
            notes=notes(timings, failed, against, draws=draws, seed=seed),
        ),
    )


def _dataset(setting: Setting) -> Dataset:
    prepared = setting.prepared
    return Dataset(
        name=str(prepared.meta["name"]),
        users=prepared.n_users,
        items=prepared.n_items,
        interactions=len(prepared.items),
        max_length=setting.max_length,
    )


def _evaluation(setting: Setting, *, users: int) -> Evaluation:
    evaluation = setting.evaluation
    split = (
        evaluation.split if isinstance(evaluation.split, str) else f"temporal {evaluation.split.temporal:g}"
    )
    return Evaluation(
        split=split,
        ks=list(evaluation.ks),
        mask_seen=evaluation.mask_seen,
        ties=evaluation.ties,
        sampled_negatives=evaluation.sampled_negatives,
        users=users,
        drawn_from=setting.test_users if setting.test_users > users else None,
    )


def _candidate(each: Measured, slices: Sequence[Members], timings: Timings) -> CandidateReport:
    candidate, facts, judged = each.candidate, each.facts, each.judged
    peak, device_peak = timings.peaks.get(each.name, (None, None))
    return CandidateReport(
        name=candidate.name,
        of=facts.of,
        kind=candidate.kind,
        variant=candidate.variant or candidate.way,
        runtime=candidate.ref.runtime,
        device=timings.devices[each.name],
        precision=facts.precision,
        threads=timings.threads,
        parameters=facts.parameters,
        body_parameters=facts.body_parameters,
        size_bytes=facts.size_bytes,
        zeros=with_kernels(facts.zeros, candidate),
        quality={} if judged is None else judged.quality,
        quality_by_seed=[]
        if judged is None
        else [SeedQuality(seed=seed, **values) for seed, values in judged.by_seed.items()],
        slices=[]
        if judged is None
        else [
            Slice(by=part.by, bin=part.bin, users=len(part.rows), quality=judged.slice_quality(part))
            for part in slices
        ],
        coverage={} if judged is None else judged.coverage,
        latency=timings.rows(each.name),
        peak_memory_bytes=peak,
        peak_device_bytes=device_peak,
        energy=list(timings.energy.get(each.name, ())) or None,
        failed=each.failed,
        train=facts.train,
    )


def _comparison(
    each: Measured, base: Measured, resampled: Resampled, timings: Timings, extras: Extras, setting: Setting
) -> Comparison:
    ratios = (
        {metric: resampled.ratio(each.name, base.name, metric) for metric in each.judged.per_user}
        if each.judged is not None
        else {}
    )
    return Comparison(
        candidate=each.name,
        against=base.name,
        quality={
            metric: quality_ratio(ratio, extras.aa_half_widths.get(metric))
            for metric, ratio in ratios.items()
            if ratio is not None
        },
        size_ratio=_quotient(each.facts.size_bytes, base.facts.size_bytes),
        parameter_ratio=_quotient(each.facts.parameters, base.facts.parameters),
        speedup=[
            speedup(timed, each.name, base.name, draws=setting.draws, seed=setting.seed)
            for timed in timings.cells
            if each.name in timed.seconds and base.name in timed.seconds
        ],
    )


def _quotient(above: int | None, below: int | None) -> float | None:
    return above / below if above is not None and below else None


def _saturation(timings: Timings) -> list[Saturation] | None:
    """Of the candidates that have such a point."""
    found = [each.saturation for each in timings.open_loops.values() if each.saturation is not None]
    return found or None
