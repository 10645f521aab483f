"""What is reached of what the machine can do: the section `roofline` from its evidence."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bench.gpu_roofline import gpu_row
from bench.latency import Timed
from bench.reasons import reason
from bench.report.roofline_parts import (
    PARTS,
    CallPart,
    GpuMachine,
    Machine,
    PartOfCall,
    PeakTrial,
    Products,
    Reason,
    Roofline,
    RooflineRow,
)
from bench.roofline import Evidence, Measured, Split, Trial, in_words, mean_work
from recommender.cost import CostFormulas, PartCost, PartName, Work

PEAK_PRECISION = "fp32"
BODY: tuple[PartName, ...] = ("embedding", "blocks", "head")
NOTHING = PartCost()
QUIET = 0.8
"""Median of a peak's best trial, as a share of the best measurement, below which a caution is given."""


def roofline_section(evidence: Evidence, cells: Sequence[Timed], *, k: int, rows: int) -> Roofline:
    """Rows of every candidate, against the processor or the GPU that it ran on, and why it is not faster.

    `k` items per list, out of a table of `rows`.
    """
    machine = machine_of(evidence, threads=cells[0].threads)
    found = Roofline(
        machine=machine, gpu=evidence.gpu, rows=[], reasons=[], missing={}, cautions=list(cautions(machine))
    )
    if evidence.gpu_failed is not None:
        found.cautions.append(
            f"The GPU was not measured to the end: the process that measures it {evidence.gpu_failed}."
        )
    if evidence.machine_failed is not None:
        found.cautions.append(
            "The machine was not measured to the end: the process that measures it "
            f"{evidence.machine_failed}. Its peaks are those of before, and shapes that came later have none."
        )
    for name, measured in evidence.candidates.items():
        missing = list(measured.missing)
        try:
            if measured.tf32 is not None:
                own = list(_gpu_rows(name, measured, evidence.gpu, cells, k=k, rows=rows))
            else:
                told = _told(name, measured, cells)
                own = [_row(name, timed, measured, machine, k=k, rows=rows) for timed in told]
            text = reason(own)
        except Exception as error:  # what is odd about one candidate costs neither the others nor the report
            missing.append(f"no bounds could be told: {in_words(error)}")
        else:
            found.rows.extend(own)
            found.reasons.extend([Reason(candidate=name, text=text)] if text else [])
        if missing:
            found.missing[name] = "; ".join(missing)
    return found


def _gpu_rows(
    name: str, measured: Measured, gpu: GpuMachine | None, cells: Sequence[Timed], *, k: int, rows: int
) -> Iterator[RooflineRow]:
    """Nothing where the work or the GPU is not known, of which something else tells."""
    if gpu is None or measured.formulas is None:
        return
    for timed in (timed for timed in cells if name in timed.seconds):
        works = mean_work(measured.formulas, timed.load, k, rows)
        yield gpu_row(name, timed, measured.formulas, works, gpu, tf32=bool(measured.tf32))


def _told(name: str, measured: Measured, cells: Sequence[Timed]) -> list[Timed]:
    """The loads of which anything is known besides the time."""
    known = measured.formulas or measured.splits
    return [timed for timed in cells if name in timed.seconds and known]


def cautions(machine: Machine) -> Iterator[str]:
    """Peaks that half of the measurements stayed well below: something else ran."""
    for what, name in (("bandwidth", "memory bandwidth"), ("gemm", "GEMM peak")):
        best = max((trial for trial in machine.trials if trial.what == what), key=lambda trial: trial.best)
        if best.median < QUIET * best.best:
            yield (
                f"This machine was not quiet: half of the measurements of its {name} came to "
                f"{best.median / best.best:.0%} of the best or less. Calls met the same, so they are nearer "
                "to what was there for them than these shares say."
            )


def machine_of(evidence: Evidence, *, threads: int) -> Machine:
    """The peaks: the best trial of each kind."""

    def best(what: str) -> float:
        return max(max(trial.rates) for trial in evidence.trials if trial.what == what)

    return Machine(
        threads=threads,
        bandwidth=best("bandwidth"),
        gemm=best("gemm"),
        buffer_bytes=evidence.buffer_bytes,
        cache_bytes=evidence.cache_bytes,
        trials=[_trial(trial) for trial in evidence.trials],
    )


def _trial(trial: Trial) -> PeakTrial:
    return PeakTrial.model_validate(
        {
            "what": trial.what, "library": trial.library, "how": trial.how, "shape": trial.shape,
            "best": max(trial.rates), "median": float(np.median(trial.rates)), "lowest": min(trial.rates),
            "samples": len(trial.rates),
        }
    )  # fmt: skip


def _row(name: str, timed: Timed, measured: Measured, machine: Machine, *, k: int, rows: int) -> RooflineRow:
    time_ms = float(np.median(timed.seconds[name])) * 1e3
    split = measured.splits.get((timed.load.name, timed.load.batch))
    works: Mapping[PartName, Work] = {}
    without: list[PartName] = []
    if measured.formulas is not None:
        works = mean_work(measured.formulas, timed.load, k, rows)
        without = other_arithmetic(measured.formulas)
    shares = {} if split is None else shares_of(split)
    return RooflineRow(
        candidate=name,
        load=timed.load.name,
        batch=timed.load.batch,
        threads=timed.threads,
        time_ms=time_ms,
        split_by=None if split is None else split.how,
        without_peak=list(without) or None,
        parts=list(_parts(works, without, shares, machine, time_ms)),
        products=None if split is None else _products(split, own_peak(machine, measured)),
        **bounds(works, without, machine, time_ms),
    )


def other_arithmetic(formulas: CostFormulas) -> list[PartName]:
    """Parts whose products are not in the precision of the peak; the maps around the blocks are as theirs."""
    used = {part: formulas.precision for part in BODY} | {"scoring": formulas.table_precision}
    return [
        part
        for part, precision in used.items()
        if precision != PEAK_PRECISION and formulas.parts.get(part, NOTHING).products
    ]


def bounds(
    works: Mapping[PartName, Work], without: Sequence[PartName], machine: Machine, time_ms: float
) -> dict[str, object]:
    """FLOPs, bytes and what they take at the peaks; nothing where the work is not known.

    A compute bound leaves out the parts in `without`, and so stays a bound.
    """
    if not works:
        return {}
    total = sum(works.values(), Work())
    counted = sum(work.flops for part, work in works.items() if part not in without)
    compute, memory = 1e3 * counted / machine.gemm, 1e3 * total.bytes / machine.bandwidth
    return {
        "flops": total.flops,
        "bytes": total.bytes,
        "intensity": total.flops / total.bytes,
        "compute_ms": compute,
        "bandwidth_ms": memory,
        "bound_ms": max(compute, memory),
        "bound_by": "compute" if compute > memory else "memory",
        "share_of_bound": max(compute, memory) / time_ms,
    }


def faster_half(values: Sequence[float]) -> list[int]:
    """Numbers of the calls that took least, half of them and one at least: those that were disturbed least.

    What disturbs a call falls on its parts by chance, so medians of parts would not add up to that of calls.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    return order[: max(1, len(values) // 2)]


def spent_ns(split: Split) -> dict[str, float]:
    """Nanoseconds of a call by part, `other` included: means over the faster half of the traced calls.

    A profile knows the operators only: there, `other` is what they leave of a plain call.
    """
    names = sorted({name for call in split.parts for name in call})
    chosen = [split.parts[i] for i in faster_half([sum(call.values()) for call in split.parts])]
    spent = {name: float(np.mean([call.get(name, 0) for call in chosen])) for name in names}
    if split.how == "profile":
        plain = float(np.mean([split.plain[i] for i in faster_half(split.plain)]))
        spent["other"] = max(0.0, plain - sum(spent.values()))
    return spent


def shares_of(split: Split) -> dict[str, float]:
    """Share of a call's time by part; they add up to 1."""
    spent = spent_ns(split)
    whole = sum(spent.values())
    return {name: value / whole for name, value in spent.items()}


def _parts(
    works: Mapping[PartName, Work], without: Sequence[PartName], shares: Mapping[str, float],
    machine: Machine, time_ms: float,
) -> list[CallPart]:  # fmt: skip
    """Every part that is known of, in the order of a call."""
    by_name: dict[PartOfCall, Work] = {name: work for name, work in works.items()}
    found = []
    for name in PARTS:
        work, share = by_name.get(name), shares.get(name)
        if work is None and share is None:
            continue
        bound = None
        if work is not None:
            compute = 0.0 if name in without else work.flops / machine.gemm
            bound = 1e3 * max(compute, work.bytes / machine.bandwidth)
        found.append(
            CallPart(
                part=name,
                flops=None if work is None else work.flops,
                bytes=None if work is None else work.bytes,
                bound_ms=bound,
                share=share,
                time_ms=None if share is None else share * time_ms,
            )
        )
    return found


def own_peak(machine: Machine, measured: Measured) -> float | None:
    """FLOPs per second: the best that any library reached with the shapes of this model, if it is fp32."""
    if measured.formulas is None or measured.formulas.precision != PEAK_PRECISION:
        return None
    own = [trial.best for trial in machine.trials if trial.shape in measured.shapes]
    return max(own, default=None)


def _products(split: Split, peak: float | None) -> Products | None:
    """Those in the blocks; None where nothing tells, or there are none."""
    if split.products is None:
        return None
    chosen = [split.products[i] for i in faster_half([sum(call.values()) for call in split.parts])]
    spent, flops = (float(np.mean([call[place] for call in chosen])) for place in (0, 1))
    if not spent:
        return None
    rate = 1e9 * flops / spent
    return Products(
        share=spent / sum(spent_ns(split).values()),
        flops_per_second=rate,
        share_of_peak=None if peak is None else rate / peak,
    )
