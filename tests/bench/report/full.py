"""A report in which every part is measured."""

import math

from bench.report.parts import (
    Cost,
    CostRow,
    Finding,
    Pareto,
    ParetoPoint,
    Provenance,
    QualityRatio,
    RankChange,
    Sample,
    Saturation,
    SliceRatio,
    Suggestions,
)
from bench.report.schema import Dataset, Environment, Evaluation, Report, Sections
from recommender.profile import Cut, Depth, DepthProfile, Removal
from tests.bench.report.full_candidates import (
    BATCHES,
    BINS,
    PARENTS,
    QUALITIES,
    SPEEDS,
    candidate,
    comparison,
    failed,
    metrics,
    most,
    of_slice,
    seconds,
)
from tests.bench.report.full_roofline import full_roofline


def full_report() -> Report:
    """Five candidates, a crashed one, three loads, and every optional section."""
    return Report(
        recipe="slmrec",
        variant="hidden-64",
        seeds=[42, 43, 44],
        created="2026-01-02T03:04:05+00:00",
        command="recpress run slmrec --set 'data.source=amazon-beauty' --out runs/slmrec",
        environment=Environment(
            recpress="0.2.0", python="3.11.9", torch="2.13.0", transformers="5.23.0", onnxruntime="1.31.0",
            numpy="2.3.1", os="Linux 6.1", cpu="Intel Xeon, 2.80 GHz", isa=["avx2", "avx512f", "amx_int8"],
            cores=8, memory_bytes=33_000_000_000,
        ),
        dataset=Dataset(
            name="amazon-beauty", users=22_363, items=12_101, interactions=198_502, max_length=50
        ),
        evaluation=Evaluation(
            split="leave-one-out", ks=[1, 5, 10, 20], mask_seen=True, ties="pessimistic", users=22_363
        ),
        candidates=[*(candidate(name) for name in SPEEDS), failed()],
        comparisons=[comparison(name) for name in PARENTS],
        sections=_sections(),
    )  # fmt: skip


def _sections() -> Sections:
    return Sections(
        pareto=[_pareto(load, batch) for load in ("full", "real") for batch in BATCHES],
        slice_ratios=[
            SliceRatio(
                candidate=name, against="teacher", by=by, bin=bin_, metric="ndcg@10", users=users,
                ratio=_slice_ratio(name, bin_, users),
            )
            for name in PARENTS
            for by, bin_, users in BINS
        ],
        samples=[_sample(1), _sample(2)],
        depth_profile=[_profile()],
        rank_changes=[_change(name) for name in PARENTS],
        saturation=[
            Saturation(candidate=name, batch=32, users_per_second=0.93 * most(name), limit_ms=60.0)
            for name in SPEEDS
        ],
        cost=_cost(),
        roofline=full_roofline(),
        findings=[
            Finding(kind="holds", text="student keeps 101.1% of teacher's NDCG@10, 99.6% at least."),
            Finding(kind="holds", text="student-onnx:fp32 is 4.1 times as fast as teacher."),
            Finding(kind="fails", text="student-onnx:int8 loses quality, most of all on tail items."),
            Finding(kind="fails", text="student-w4 crashed and was not measured."),
            Finding(kind="open", text="Whether student is better than teacher: two seeds differ as much."),
        ],
        provenance=_provenance(),
        notes=["Quality ratios: the same users, drawn anew.", "Head, middle and tail are shelves."],
    )  # fmt: skip


def _pareto(load: str, batch: int) -> Pareto:
    def point(name: str) -> ParetoPoint:
        speed, quality = batch / seconds(name, load, batch), QUALITIES[name]
        return ParetoPoint(
            candidate=name, kind="artifact" if "onnx" in name else "checkpoint", quality=quality,
            quality_ci95=(quality * 0.97, quality * 1.03), users_per_second=speed,
            users_per_second_ci95=(speed * 0.95, speed * 1.04),
        )  # fmt: skip

    return Pareto(
        metric="ndcg@10", load=load, batch=batch, threads=1, points=[point(name) for name in SPEEDS]
    )


def _slice_ratio(name: str, bin_: str, users: int) -> QualityRatio:
    ratio = of_slice(name, bin_) / of_slice("teacher", bin_)
    half = 4 / math.sqrt(users) * (3 if bin_ == "cold" else 1)
    return QualityRatio(ratio=ratio, ci95=(max(ratio - half, 0), ratio + half), p_value=0.2)


def _sample(number: int) -> Sample:
    titles = ["Rosewater face mist", "Vitamin C serum", "Clay mask", "Almond hand cream", "Lip balm, honey"]
    return Sample(
        history=["Shea butter soap", "Argan oil shampoo", "Bamboo hair brush"],
        history_length=6 + number,
        next=titles[number],
        suggestions=[
            Suggestions(candidate=name, titles=titles, rank=None if "int8" in name else number + 1)
            for name in SPEEDS
        ],
    )


def _profile() -> DepthProfile:
    influence = [0.61, 0.22, 0.12, 0.085, 0.052, 0.047, 0.09, 0.31]
    cuts = [
        Cut(first=first, length=length, distance=min(0.04 + sum(influence[first : first + length]) / 4, 1))
        for length in range(1, 8)
        for first in range(0, 9 - length)
    ]
    order = [5, 4, 3, 6, 2, 1, 7]
    depths = [
        Depth(
            blocks=blocks, kept=sorted(set(range(8)) - set(order[: 8 - blocks])), retrained=retrained,
            quality=metrics(0.055 * (0.93 + 0.01 * blocks - (0 if retrained else 0.09 * (8 - blocks)))),
            body_parameters=50_016 * blocks, seconds_per_epoch=12.5 * blocks if retrained else None,
        )
        for blocks in (1, 2, 4, 8) for retrained in (False, True)
    ]  # fmt: skip
    return DepthProfile(
        of="teacher", blocks=8, users=2_000, seed=42, block_influence=influence, cuts=cuts,
        greedy=[Removal(block=block, validation_loss=7.1 + 0.03 * 2.2**i) for i, block in enumerate(order)],
        validation_loss=7.08, depths=depths,
    )  # fmt: skip


def _change(name: str) -> RankChange:
    ends = [0.5, 3.5, 10.5, 31.5, 100.5, 316.5, 1000.5, 3162.5, 10000.5, 31622.5]
    edges = [-edge for edge in reversed(ends)] + ends
    middle = len(ends) - 1
    tilt = 1.15 if name.endswith("int8") else 0.97
    counts = [
        int(1500 * math.exp(-(((i - middle) / 5) ** 2)) * (tilt if i > middle else 1)) for i in range(19)
    ]
    counts[middle] = 3_100
    return RankChange(
        candidate=name, against="teacher", edges=edges, counts=counts, better=sum(counts[:middle]),
        same=counts[middle], worse=sum(counts[middle + 1 :]), depth=20 if "onnx" in name else None,
    )  # fmt: skip


def _cost() -> Cost:
    rows = [
        CostRow(
            candidate=name, load="real", batch=batch, users_per_second=batch / seconds(name, "real", batch),
            users_per_currency_unit=batch / seconds(name, "real", batch) * 3600 / 0.34,
            users_per_watt_hour=batch / seconds(name, "real", batch) * 3600 / 61.3,
            power="assumed" if name == "pruned" else "measured",
        )
        for name in SPEEDS
        for batch in BATCHES
    ]  # fmt: skip
    said = ["The machine costs 0.34 USD an hour and is kept busy.", "65 W where power was not measured."]
    return Cost(currency="USD", price_per_hour=0.34, watts=65, assumptions=said, rows=rows)


def _provenance() -> Provenance:
    names = ["teacher", "pruned", "student", "student-onnx"]
    digests = {
        f"{name} (seed {seed})": f"{i}{seed}" * 21 + "a"
        for i, name in enumerate(names)
        for seed in (42, 43, 44)
    }
    return Provenance(
        data_digest="5b0e9f" * 10 + "5b0e",
        parents={
            "teacher": [], "pruned": ["teacher"], "student": ["pruned", "teacher"],
            "student-onnx": ["student"],
        },
        digests=digests,
    )  # fmt: skip
