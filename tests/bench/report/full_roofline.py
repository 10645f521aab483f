"""The roofline of the full sample report: one candidate of each kind of knowledge."""

from bench.report.roofline_parts import (
    CallPart,
    Machine,
    PartOfCall,
    PeakTrial,
    Products,
    Reason,
    Roofline,
    RooflineRow,
)
from tests.bench.report.full_candidates import BATCHES, seconds

BANDWIDTH, PEAK = 13.7e9, 177e9
SHARES: dict[str, dict[PartOfCall, float]] = {
    "teacher": {
        "embedding": 0.06, "blocks": 0.7, "head": 0.02, "scoring": 0.12, "top_k": 0.04, "other": 0.06,
    },
    "student-onnx:fp32": {
        "embedding": 0.03, "blocks": 0.6, "head": 0.01, "scoring": 0.2, "top_k": 0.03, "copies": 0.1,
        "other": 0.03,
    },
}  # fmt: skip


def full_roofline() -> Roofline:
    """The teacher is hooked; of the artifacts one is known whole, one has no formulas, one is no fp32."""
    return Roofline(
        machine=Machine(
            threads=1, bandwidth=BANDWIDTH, gemm=PEAK, buffer_bytes=268_435_456, cache_bytes=33_554_432,
            trials=[
                _trial("bandwidth", "numpy", "matrix times vector", None, BANDWIDTH),
                _trial("gemm", "onnxruntime", "MatMul", (1600, 64, 192), PEAK),
                _trial("gemm", "torch", "mm", (2048, 2048, 2048), PEAK * 0.9),
            ],
        ),
        rows=[known_row(name, batch) for name in SHARES for batch in BATCHES],
        reasons=[Reason(candidate="teacher", text="At batch 1 the blocks hold it up.")],
        missing={"student-onnx:int8": "its manifest has no cost formulas"},
        cautions=["This machine was not quiet."],
    )  # fmt: skip


def _trial(what: str, library: str, how: str, shape: tuple[int, int, int] | None, best: float) -> PeakTrial:
    return PeakTrial.model_validate(
        {
            "what": what, "library": library, "how": how, "shape": shape, "best": best,
            "median": best * 0.97, "lowest": best * 0.8, "samples": 15,
        }
    )  # fmt: skip


def known_row(name: str, batch: int) -> RooflineRow:
    """A row whose bounds follow from its FLOPs and bytes."""
    time_ms = seconds(name, "full", batch) * 1e3
    flops, bytes_ = 9e6 * batch, 4e6 + 1e4 * batch
    compute, memory = 1e3 * flops / PEAK, 1e3 * bytes_ / BANDWIDTH
    products = Products(share=0.4, flops_per_second=0.9 * PEAK, share_of_peak=0.9) if "onnx" in name else None
    return RooflineRow(
        candidate=name, load="full", batch=batch, threads=1, time_ms=time_ms, flops=flops, bytes=bytes_,
        intensity=flops / bytes_, compute_ms=compute, bandwidth_ms=memory, bound_ms=max(compute, memory),
        bound_by="compute" if compute > memory else "memory", share_of_bound=max(compute, memory) / time_ms,
        split_by="profile" if "onnx" in name else "hooks",
        parts=[
            _part(part, share, time_ms, 0.2 * max(compute, memory)) for part, share in SHARES[name].items()
        ],
        products=products,
    )  # fmt: skip


def _part(part: PartOfCall, share: float, time_ms: float, bound_ms: float) -> CallPart:
    known = None if part in ("copies", "other") else bound_ms
    return CallPart(part=part, share=share, time_ms=share * time_ms, bound_ms=known)
