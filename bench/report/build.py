"""Puts what was measured into one report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench.candidates import Candidate
from bench.compare import Ratio, Resampled, resample
from bench.facts import Facts
from bench.latency import Timed, latency, speed_interval, speedup
from bench.quality import Judged, key_metric
from bench.report.schema import (
    CandidateReport,
    Comparison,
    Dataset,
    Environment,
    Evaluation,
    Pareto,
    ParetoPoint,
    QualityRatio,
    Report,
    Sample,
    Sections,
    SeedQuality,
    Slice,
    SliceRatio,
)
from bench.slices import Members
from recommender.data.config import EvaluationConfig
from recommender.data.prepared import Prepared

NOTES = (
    "Latencies were taken in one process, candidates in turn within each round; they share caches and "
    "thread pools, and no A/A floor was measured.",
    "A latency is one call: padded histories in, the best items out. Opening a model and warming it up are "
    "not in it.",
    "Quality ratios: the same users, drawn with replacement; metrics of a user are averaged over seeds "
    "first.",
    "Head, middle and tail are the most popular 20%, the next 30% and the other half of the items that occur "
    "in training; cold items never occur there.",
)


@dataclass(frozen=True)
class Measured:
    """One candidate and everything that was measured of it."""

    candidate: Candidate
    facts: Facts
    judged: Judged
    device: str


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
    threads: int
    draws: int
    seed: int


def build(
    setting: Setting, measured: Sequence[Measured], against: str, slices: Sequence[Members],
    timings: Sequence[Timed], samples: Sequence[Sample],
) -> Report:  # fmt: skip
    """The report of a bench: every candidate, and each one but `against` compared with `against`."""
    metrics = {each.candidate.name: each.judged.per_user for each in measured}
    resampled = resample(metrics, draws=setting.draws, seed=setting.seed)
    others = [each for each in measured if each.candidate.name != against]
    base = next(each for each in measured if each.candidate.name == against)
    key = key_metric(setting.evaluation.ks)
    return Report(
        recipe=setting.recipe,
        variant=setting.variant,
        seeds=list(setting.seeds),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=setting.command,
        environment=setting.environment,
        dataset=_dataset(setting),
        evaluation=_evaluation(setting.evaluation, users=len(base.judged.users)),
        candidates=[_candidate(each, slices, timings, setting.threads) for each in measured],
        comparisons=[_comparison(each, base, resampled, timings, setting) for each in others],
        sections=Sections(
            pareto=[_pareto(timed, measured, resampled, key, setting) for timed in timings],
            slice_ratios=_slice_ratios(metrics, against, slices, key, setting),
            samples=list(samples),
            notes=list(NOTES),
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


def _evaluation(evaluation: EvaluationConfig, *, users: int) -> Evaluation:
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
    )


def _candidate(
    each: Measured, slices: Sequence[Members], timings: Sequence[Timed], threads: int
) -> CandidateReport:
    candidate, facts, judged = each.candidate, each.facts, each.judged
    return CandidateReport(
        name=candidate.name,
        of=facts.of,
        kind=candidate.bound.kind,
        variant=candidate.variant,
        runtime=candidate.ref.runtime,
        device=each.device,
        precision=facts.precision,
        threads=threads,
        parameters=facts.parameters,
        body_parameters=facts.body_parameters,
        size_bytes=facts.size_bytes,
        quality=judged.quality,
        quality_by_seed=[SeedQuality(seed=seed, **values) for seed, values in judged.by_seed.items()],
        slices=[
            Slice(by=part.by, bin=part.bin, users=len(part.rows), quality=judged.slice_quality(part))
            for part in slices
        ],
        coverage=judged.coverage,
        latency=[latency(timed, candidate.name) for timed in timings],
        train=facts.train,
    )


def _comparison(
    each: Measured, base: Measured, resampled: Resampled, timings: Sequence[Timed], setting: Setting
) -> Comparison:
    name, against = each.candidate.name, base.candidate.name
    ratios = {metric: resampled.ratio(name, against, metric) for metric in each.judged.per_user}
    return Comparison(
        candidate=name,
        against=against,
        quality={metric: _quality_ratio(ratio) for metric, ratio in ratios.items() if ratio is not None},
        size_ratio=_quotient(each.facts.size_bytes, base.facts.size_bytes),
        parameter_ratio=_quotient(each.facts.parameters, base.facts.parameters),
        speedup=[speedup(timed, name, against, draws=setting.draws, seed=setting.seed) for timed in timings],
    )


def _quotient(above: int | None, below: int | None) -> float | None:
    return above / below if above is not None and below else None


def _quality_ratio(found: Ratio) -> QualityRatio:
    return QualityRatio(ratio=found.ratio, ci95=found.ci95, p_value=found.p_value)


def _pareto(
    timed: Timed, measured: Sequence[Measured], resampled: Resampled, key: str, setting: Setting
) -> Pareto:
    return Pareto(
        metric=key,
        load=timed.load.name,
        batch=timed.load.batch,
        threads=timed.threads,
        points=[
            ParetoPoint(
                candidate=each.candidate.name,
                kind=each.candidate.bound.kind,
                quality=each.judged.quality[key],
                quality_ci95=resampled.interval(each.candidate.name, key),
                users_per_second=latency(timed, each.candidate.name).users_per_second,
                users_per_second_ci95=speed_interval(
                    timed, each.candidate.name, draws=setting.draws, seed=setting.seed
                ),
            )
            for each in measured
            if key in each.judged.per_user
        ],
    )


def _slice_ratios(
    metrics: Mapping[str, Mapping[str, Any]],
    against: str,
    slices: Sequence[Members],
    key: str,
    setting: Setting,
) -> list[SliceRatio]:
    only_key = {name: {key: values[key]} for name, values in metrics.items() if key in values}
    if against not in only_key:
        return []
    found: list[SliceRatio] = []
    for part in slices:
        resampled = resample(only_key, draws=setting.draws, seed=setting.seed, rows=part.rows)
        for name in only_key:
            ratio = resampled.ratio(name, against, key)
            if name != against and ratio is not None:
                found.append(
                    SliceRatio(
                        candidate=name,
                        against=against,
                        by=part.by,
                        bin=part.bin,
                        metric=key,
                        users=len(part.rows),
                        ratio=_quality_ratio(ratio),
                    )
                )
    return found
