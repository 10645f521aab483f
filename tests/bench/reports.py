"""Reports written by hand: a teacher and a student, with whatever a test is about."""

from typing import Any

from bench.report.parts import QualityRatio
from bench.report.schema import (
    CandidateReport,
    Comparison,
    Dataset,
    Environment,
    Evaluation,
    Report,
    Sections,
    Speedup,
)

QUALITY = {"hr@10": 0.5, "ndcg@10": 0.3, "mrr": 0.2}


def candidate(name: str, **more: Any) -> CandidateReport:
    """A checkpoint of 1 MB with some quality."""
    given = {
        "kind": "checkpoint", "runtime": "torch", "device": "cpu", "threads": 1, "size_bytes": 1_000_000,
        "quality": QUALITY, "quality_by_seed": [], "slices": [], "coverage": {}, "latency": [],
    }  # fmt: skip
    return CandidateReport.model_validate({"name": name, **given, **more})


def kept(
    ratio: float = 0.99, ci95: tuple[float, float] | None = (0.98, 1.01), aa: float | None = None
) -> QualityRatio:
    """A quality ratio."""
    return QualityRatio(ratio=ratio, ci95=ci95, aa_half_width=aa)


def faster(
    ratio: float = 6.0, ci95: tuple[float, float] | None = (5.5, 6.5), floor: float | None = 0.02, **more: Any
) -> Speedup:
    """A speed-up at batch 1 of real histories."""
    given = {"load": "real", "batch": 1, "threads": 1, "ratio": ratio, "ci95": ci95, "aa_floor": floor}
    return Speedup.model_validate({**given, **more})


def comparison(candidate: str = "student", against: str = "teacher", **more: Any) -> Comparison:
    """A comparison that any sensible gate lets through."""
    given = {"quality": {"ndcg@10": kept(), "hr@10": kept()}, "speedup": [faster()]}
    return Comparison.model_validate({"candidate": candidate, "against": against, **given, **more})


def report(
    *,
    candidates: list[CandidateReport] | None = None,
    comparisons: list[Comparison] | None = None,
    seeds: tuple[int, ...] = (1, 2),
    sampled: int | None = None,
    **sections: Any,
) -> Report:
    """A report of a teacher and a student unless told otherwise."""
    return Report(
        recipe="by-hand",
        seeds=list(seeds),
        created="2026-01-01T00:00:00+00:00",
        command="recpress run by-hand",
        environment=Environment(),
        dataset=Dataset(name="tiny", users=6, items=8, interactions=28, max_length=4),
        evaluation=Evaluation(
            split="leave-one-out", ks=[1, 10], mask_seen=True, ties="pessimistic", sampled_negatives=sampled,
            users=6,
        ),
        candidates=candidates or [candidate("teacher"), candidate("student", size_bytes=250_000)],
        comparisons=[comparison()] if comparisons is None else comparisons,
        sections=Sections.model_validate(sections),
    )  # fmt: skip
