"""The roofline of GPUs: peaks of each precision, and bounds by what the products of a call compute in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.candidates import Candidate, manifest_entry
from bench.child import Child, ChildFailed
from bench.gpu_peaks import PRECISIONS, Shape
from bench.latency import Timed
from bench.report.roofline_parts import GpuMachine, GpuTrial, RooflineRow
from recommender.cost import CostFormulas, PartName, Work
from recommender.ways import WAYS

BUFFER_BYTES = 1 << 30  # far beyond any second-level cache
SQUARE = 8192
MOST_POSITIONS = 1 << 16
"""Rows of the left matrix, where the model's own shapes are multiplied."""

BODY: tuple[PartName, ...] = ("embedding", "blocks", "head")


@dataclass(frozen=True)
class Trial:
    """Samples of one way to reach a peak of a GPU."""

    what: str
    how: str
    precision: str
    shape: Shape | None
    rates: Sequence[float]


class GpuPeaks:
    """The child that knows the peaks of one GPU, and all samples so far."""

    def __init__(
        self, device: str, *, threads: int, cores: Sequence[int], seconds: float, repeats: int,
        buffer_bytes: int = BUFFER_BYTES, square: int = SQUARE,
    ) -> None:  # fmt: skip
        self.device, self.seconds, self.repeats = device, seconds, repeats
        self.buffer_bytes = buffer_bytes
        self.shapes: dict[Shape, None] = {(square,) * 3: None}
        self.rates: dict[tuple[str, str, str, Shape | None], list[float]] = {}
        self.child = Child(f"machine {device}", threads=threads, cores=cores)
        self.failed: str | None = None

    def measure(self, shapes: Sequence[Shape] = ()) -> None:
        """One more measurement of everything, with these shapes from now on.

        Where it fails, what was measured before stands, and `failed` says what happened.
        """
        if self.failed is not None:
            return
        self.shapes.update(dict.fromkeys(shapes))
        order = {
            "order": "gpu", "device": self.device, "buffer_bytes": self.buffer_bytes,
            "shapes": list(self.shapes), "repeats": self.repeats,
        }  # fmt: skip
        try:
            said = self.child.ask(order, seconds=self.seconds, doing="when the GPU was measured")
        except ChildFailed as failure:
            self.failed = failure.text
            return
        for trial in said["trials"]:
            shape = trial["shape"] and tuple(trial["shape"])
            key = (trial["what"], trial["how"], trial["precision"], shape)
            self.rates.setdefault(key, []).extend(trial["rates"])

    def trials(self) -> list[Trial]:
        """Everything that was measured."""
        return [Trial(*key, rates) for key, rates in self.rates.items()]


def gpu_machine(
    trials: Sequence[Trial], *, device: str, name: str | None, buffer_bytes: int
) -> GpuMachine | None:
    """The peaks: the best trial of each kind and precision; None where none was measured."""
    if not trials:
        return None

    def best(what: str, precision: str | None = None) -> float:
        return max(
            (max(each.rates) for each in trials if each.what == what and precision in (None, each.precision)),
            default=0.0,
        )

    return GpuMachine(
        device=device,
        name=name,
        bandwidth=best("bandwidth"),
        gemm={precision: best("gemm", precision) for precision in PRECISIONS if best("gemm", precision)},
        buffer_bytes=buffer_bytes,
        trials=[
            GpuTrial.model_validate(
                {
                    "what": each.what, "how": each.how, "precision": each.precision, "shape": each.shape,
                    "best": max(each.rates), "median": float(np.median(each.rates)),
                    "lowest": min(each.rates), "samples": len(each.rates),
                }
            )
            for each in trials
        ],
    )  # fmt: skip


def runs_in_tf32(candidate: Candidate) -> bool:
    """Whether float32 products of a candidate on a GPU are rounded to TF32: where torch or the build of an
    engine is asked to, and in onnxruntime's TensorRT provider, which does it unasked.
    """
    if candidate.kind == "artifact":
        engine = manifest_entry(candidate)[1].get("engine")
        return candidate.ref.device == "tensorrt" or (engine is not None and bool(engine["flags"]["tf32"]))
    return candidate.way is not None and WAYS[candidate.way].precision == "tf32"  # type: ignore[index]


def part_precisions(formulas: CostFormulas, *, tf32: bool) -> dict[PartName, str]:
    """What the products of each part compute in; top-k multiplies nothing and counts as fp32."""
    stored: dict[PartName, str] = dict.fromkeys(BODY, formulas.precision)
    stored |= {"scoring": formulas.table_precision, "top_k": "fp32"}
    return {part: "tf32" if tf32 and each == "fp32" else each for part, each in stored.items()}


def gpu_row(
    name: str, timed: Timed, formulas: CostFormulas, works: Mapping[PartName, Work], machine: GpuMachine,
    *, tf32: bool,
) -> RooflineRow:  # fmt: skip
    """One candidate at one load and batch size against its GPU: each part at the peak of its precision."""
    time_ms = float(np.median(timed.seconds[name])) * 1e3
    precisions = part_precisions(formulas, tf32=tf32)
    without = [part for part, each in precisions.items() if part in works and each not in machine.gemm]
    compute = 1e3 * sum(
        work.flops / machine.gemm[precisions[part]] for part, work in works.items() if part not in without
    )
    total = sum(works.values(), Work())
    memory = 1e3 * total.bytes / machine.bandwidth
    device = timed.device_ms.get(name)
    on_device = None if device is None else float(np.median(device))
    bound = max(compute, memory)
    return RooflineRow(
        candidate=name,
        load=timed.load.name,
        batch=timed.load.batch,
        threads=timed.threads,
        device=machine.device,
        precision=precisions["blocks"],
        time_ms=time_ms,
        flops=total.flops,
        bytes=total.bytes,
        intensity=total.flops / total.bytes,
        compute_ms=compute,
        bandwidth_ms=memory,
        bound_ms=bound,
        bound_by="compute" if compute > memory else "memory",
        share_of_bound=bound / time_ms,
        share_on_device=None if on_device is None else bound / on_device,
        without_peak=list(without) or None,
        parts=[],
    )
