"""The candidates of the full sample report, and how they compare: made up, but like one another."""

import math
from collections.abc import Iterator
from typing import Literal

from bench.report.parts import QualityRatio
from bench.report.schema import (
    CandidateReport,
    Comparison,
    Energy,
    Latency,
    SeedQuality,
    Slice,
    Speedup,
    Training,
)

SPEEDS = {"teacher": 1.0, "pruned": 1.9, "student": 1.9, "student-onnx:fp32": 4.1, "student-onnx:int8": 5.6}
QUALITIES = {
    "teacher": 0.0529, "pruned": 0.0502, "student": 0.0535, "student-onnx:fp32": 0.0535,
    "student-onnx:int8": 0.0471,
}  # fmt: skip
PARENTS = {
    "pruned": "teacher", "student": "pruned", "student-onnx:fp32": "student", "student-onnx:int8": "student",
}  # fmt: skip
KEPT = {"pruned": 0.012, "student": 0.015, "student-onnx:fp32": 0.015, "student-onnx:int8": 0.02}
"""Half widths of the intervals of the ratios."""
SHELF_SHARES = {"head": 0.52, "middle": 0.27, "tail": 0.19, "cold": 0.02}
BINS: list[tuple[Literal["history", "popularity"], str, int]] = [
    ("history", "4-5", 11_010), ("history", "6-9", 7_402), ("history", "10-19", 3_120),
    ("history", "20+", 831), ("popularity", "head", 9_120), ("popularity", "middle", 6_012),
    ("popularity", "tail", 6_900), ("popularity", "cold", 331),
]  # fmt: skip
BATCHES = (1, 32, 256)


def metrics(ndcg: float, *, exact: bool = True) -> dict[str, float]:
    """Metrics that go with an NDCG@10; those of an artifact lack the MRR."""
    found = {}
    for k in (1, 5, 10, 20):
        found[f"hr@{k}"] = ndcg * (0.42 + 0.36 * math.log2(k + 1))
        found[f"ndcg@{k}"] = ndcg * (0.42 + 0.58 * math.log(k) / math.log(10))
    return found | ({"mrr": ndcg * 0.9} if exact else {})


def candidate(name: str) -> CandidateReport:
    """Everything that is measured of one candidate."""
    artifact = name.startswith("student-onnx")
    quality = metrics(QUALITIES[name], exact=not artifact)
    size = {"teacher": 28_400_000, "student-onnx:int8": 9_100_000}.get(name, 17_100_000)
    trained = {"teacher": (12.0, 1210.0), "pruned": (4.0, 221.0), "student": (14.0, 790.0)}.get(name)
    return CandidateReport(
        name=name,
        of=PARENTS.get(name),
        kind="artifact" if artifact else "checkpoint",
        variant=name.partition(":")[2] or None,
        runtime="onnxruntime" if artifact else "torch",
        device="cpu",
        precision="int8" if name.endswith("int8") else "fp32",
        threads=1,
        parameters=None if artifact else size // 4,
        body_parameters=None if artifact else (400_128 if name == "teacher" else 200_128),
        size_bytes=size,
        quality=quality,
        quality_by_seed=[
            SeedQuality(seed=seed, **{metric: value * factor for metric, value in quality.items()})
            for seed, factor in ((42, 0.985), (43, 1.004), (44, 1.011))
        ],
        slices=[
            Slice(by=by, bin=bin_, users=users, quality=metrics(of_slice(name, bin_), exact=not artifact))
            for by, bin_, users in BINS
        ],
        coverage=_coverage(name),
        latency=list(_latencies(name)),
        peak_memory_bytes=int((910 if not artifact else 240) * 1e6),
        energy=[_energy(name, batch) for batch in BATCHES] if name != "pruned" else None,
        train=Training(epochs=trained[0], seconds=trained[1], seconds_per_epoch=trained[1] / trained[0])
        if trained
        else None,
    )


def failed() -> CandidateReport:
    """The candidate that crashed."""
    return CandidateReport(
        name="student-w4", of="student", kind="artifact", runtime="onnxruntime", device="cpu", threads=1,
        quality={}, quality_by_seed=[], slices=[], coverage={}, latency=[],
        failed="its process ended with signal 9 (killed; out of memory?) in round 3 of `real`, batch 256",
    )  # fmt: skip


def of_slice(name: str, bin_: str) -> float:
    """NDCG@10 of one slice."""
    level = {"head": 1.7, "middle": 0.7, "tail": 0.25, "cold": 0.002, "20+": 1.3, "4-5": 0.9}.get(bin_, 1.0)
    lost = 0.6 if name.endswith("int8") and bin_ in ("tail", "cold") else 1.0
    return QUALITIES[name] * level * lost


def _coverage(name: str) -> dict[str, float]:
    shift = 0.12 if name.endswith("int8") else 0.0
    shares = SHELF_SHARES | {"head": SHELF_SHARES["head"] + shift, "tail": SHELF_SHARES["tail"] - shift}
    found = {
        "items@10": 9120.0 - 20_000 * shift,
        "catalogue@10": 0.7537 - 1.6 * shift,
        "gini@10": 0.71 + shift,
    }
    return found | {f"{shelf}@10": share for shelf, share in shares.items()}


def seconds(name: str, load: str, batch: int) -> float:
    """Of one call."""
    return (0.9 + 0.11 * batch) * (1.6 if load == "full" else 1.0) / SPEEDS[name] / 1e3 * 8


def _latencies(name: str) -> Iterator[Latency]:
    for load in ("full", "real"):
        for batch in BATCHES:
            ms = seconds(name, load, batch) * 1e3
            few = batch == 256
            yield Latency(
                load=load, length=50 if load == "full" else 8.9, batch=batch, threads=1, p50_ms=ms,
                p95_ms=ms * 1.2, p99_ms=None if few else ms * 1.6, users_per_second=batch / ms * 1e3,
                samples=40 if few else 120,
            )  # fmt: skip
    limit = most(name)
    for share in (0.3, 0.5, 0.7, 0.9, 1.1):
        base = seconds(name, "real", 1) * 1e3
        wait = 1 / max(1 - min(share, 0.96), 0.03)
        enough = share != 0.3
        yield Latency(
            load="open-loop", length=8.9, batch=32, threads=1, p50_ms=base * (1 + 0.3 * wait),
            p95_ms=base * (1 + 0.8 * wait), p99_ms=base * (1 + 1.4 * wait) if enough else None,
            users_per_second=limit * min(share, 1.0), samples=2400 if enough else 80, rate=limit * share,
            kept_up=share < 1 if enough else None, unanswered=0 if share < 1 else 31,
        )  # fmt: skip


def most(name: str) -> float:
    """Users per second of full batches."""
    return 32 / seconds(name, "real", 32)


def _energy(name: str, batch: int) -> Energy:
    joules = 61 * seconds(name, "real", batch) / batch
    return Energy(
        source="rapl", load="real", batch=batch, watts=61.3, joules_per_user=joules,
        users_per_watt_hour=3600 / joules,
    )  # fmt: skip


def _ratio(name: str, *, wide: float = 1.0, aa: bool = True) -> QualityRatio:
    ratio, half = QUALITIES[name] / QUALITIES["teacher"], KEPT[name] * wide
    return QualityRatio(
        ratio=ratio, ci95=(ratio - half, ratio + half), p_value=0.0004 if abs(ratio - 1) > half else 0.21,
        aa_half_width=0.021 if aa else None,
    )  # fmt: skip


def comparison(name: str) -> Comparison:
    """One candidate against the teacher."""
    exact = not name.startswith("student-onnx")
    return Comparison(
        candidate=name,
        against="teacher",
        quality={metric: _ratio(name) for metric in metrics(1, exact=exact)},
        size_ratio=0.32 if name.endswith("int8") else 0.602,
        parameter_ratio=0.602 if exact else None,
        speedup=[
            Speedup(
                load=load, batch=batch, threads=1, ratio=SPEEDS[name],
                ci95=(SPEEDS[name] * 0.96, SPEEDS[name] * 1.05), aa_floor=0.012 if batch > 1 else 0.034,
            )
            for load in ("full", "real")
            for batch in BATCHES
        ],
    )  # fmt: skip
