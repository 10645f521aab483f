"""The section `roofline` of a report: what the machine can do, what a call has to do, where its time goes."""

from typing import Literal

from pydantic import Field

from bench.report.parts import Part

PartOfCall = Literal["embedding", "blocks", "head", "scoring", "top_k", "copies", "other"]
PARTS: tuple[PartOfCall, ...] = ("embedding", "blocks", "head", "scoring", "top_k", "copies", "other")


class PeakTrial(Part):
    """One way to reach a peak; bytes or FLOPs per second."""

    what: Literal["bandwidth", "gemm"]
    library: str
    how: str
    shape: tuple[int, int, int] | None = Field(None, description="gemm: m, k, n")
    best: float
    median: float
    lowest: float
    samples: int


class Machine(Part):
    """The machine at its best, in a process that is pinned as the candidates are."""

    threads: int
    bandwidth: float = Field(description="bytes per second that are read from memory, the best trial")
    gemm: float = Field(description="fp32 FLOPs per second of a matrix product, the best trial")
    buffer_bytes: int = Field(description="what was read for the bandwidth")
    cache_bytes: int | None = Field(None, description="largest cache of a core, shared or not")
    trials: list[PeakTrial]


class GpuTrial(Part):
    """One way to reach a peak of a GPU; bytes or FLOPs per second, by CUDA events."""

    what: Literal["bandwidth", "gemm"]
    how: str
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    shape: tuple[int, int, int] | None = Field(None, description="gemm: m, k, n")
    best: float
    median: float
    lowest: float
    samples: int


class GpuMachine(Part):
    """A GPU at its best."""

    device: str
    name: str | None = None
    bandwidth: float = Field(description="bytes per second of its memory, the best trial")
    gemm: dict[str, float] = Field(
        description="FLOPs per second of a matrix product by precision, the best trial; fp32: without TF32"
    )
    buffer_bytes: int = Field(description="what was moved for the bandwidth")
    trials: list[GpuTrial]


class CallPart(Part):
    """One part of a call."""

    part: PartOfCall
    flops: float | None = None
    bytes: float | None = None
    bound_ms: float | None = Field(
        None, description="the longer of FLOPs at the peak and bytes at the bandwidth"
    )
    share: float | None = Field(None, description="of the time of the call")
    time_ms: float | None = None


class Products(Part):
    """The matrix products in the blocks, as onnxruntime's profile has them."""

    share: float = Field(description="of the time of the call")
    flops_per_second: float
    share_of_peak: float | None = Field(
        None,
        description="of the best rate that any library reached with weights of the model's own shapes, at "
        "the rows of its largest timed call",
    )


class RooflineRow(Part):
    """One candidate at one load and batch size; FLOPs and bytes are means over the batches of the load."""

    candidate: str
    load: Literal["full", "real"]
    batch: int
    threads: int
    time_ms: float = Field(description="median of the timed calls")
    flops: float | None = Field(None, description="the least that has to be computed; absent: not known")
    bytes: float | None = Field(None, description="the least that has to be read and written")
    intensity: float | None = Field(None, description="FLOPs per byte")
    compute_ms: float | None = Field(None, description="FLOPs at the GEMM peak")
    bandwidth_ms: float | None = Field(None, description="bytes at the bandwidth")
    bound_ms: float | None = Field(None, description="the longer of the two")
    bound_by: Literal["compute", "memory"] | None = None
    share_of_bound: float | None = Field(None, description="bound / time; 1: no faster on this machine")
    without_peak: list[str] | None = Field(
        None,
        description="parts that compute in a precision without a peak (on a CPU: not in fp32); their FLOPs "
        "are not in compute_ms",
    )
    device: str | None = Field(None, description="absent: the processor")
    precision: str | None = Field(
        None, description="on a GPU: what the products of the blocks compute in, and so the peak they face"
    )
    share_on_device: float | None = Field(
        None, description="bound / time between CUDA events, which leaves out the host before and after"
    )
    split_by: Literal["hooks", "profile"] | None = Field(None, description="absent: not taken apart")
    parts: list[CallPart]
    products: Products | None = None


class Reason(Part):
    """Why a candidate is not faster, in words."""

    candidate: str
    text: str


class Roofline(Part):
    """Where the time goes."""

    machine: Machine
    gpu: GpuMachine | None = Field(None, description="absent: nothing ran on one, or it was not measured")
    rows: list[RooflineRow]
    reasons: list[Reason]
    missing: dict[str, str] = Field(description="candidate -> what is not known of it, and why")
    cautions: list[str] = Field(description="what speaks against these numbers")
