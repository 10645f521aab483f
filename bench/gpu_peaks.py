"""What a GPU does at best: moving memory and multiplying matrices in each precision, by CUDA events.

fp32 is with TF32 off; tf32 is float32 data whose products are rounded to TF32, as torch does it on request
and onnxruntime's TensorRT provider by itself.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args

Shape = tuple[int, int, int]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WARM_UP = 3
LEAST_SECONDS = 0.02
"""Short runs are repeated until a measurement takes that long, so that launches do not show."""


class Clock(Protocol):
    """Times work on a device: torch.cuda's events, or what stands in for them."""

    def seconds(self, run: Callable[[], object], times: int) -> float:
        """Of `times` runs, one after the other, from the first kernel's start to the last one's end."""
        ...


class CudaClock:
    """Two events around the runs."""

    def __init__(self, device: str) -> None:
        self.device = device

    def seconds(self, run: Callable[[], object], times: int) -> float:
        """See `Clock`."""
        import torch

        with torch.cuda.device(self.device):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            before.record()
            for _ in range(times):
                run()
            after.record()
            after.synchronize()
            return float(before.elapsed_time(after)) / 1e3


class WallClock:
    """The processor's clock, for devices that do their work before a call returns."""

    def seconds(self, run: Callable[[], object], times: int) -> float:
        """See `Clock`."""
        started = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - started


class GpuTrial(NamedTuple):
    """One way to reach a peak."""

    what: Literal["bandwidth", "gemm"]
    how: str
    precision: Precision
    shape: Shape | None
    work: float  # bytes or FLOPs of one run
    run: Callable[[], object]


@dataclass
class GpuBench:
    """The trials of one device; matrices are made for a measurement and freed after it."""

    device: str
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = CudaClock(self.device) if self.device.startswith("cuda") else WallClock()

    def rates(
        self, *, buffer_bytes: int, shapes: Sequence[Shape], repeats: int
    ) -> list[tuple[GpuTrial, list[float]]]:
        """Bytes or FLOPs per second of every trial, `repeats` of each."""
        found = []
        for trial in self._all(buffer_bytes, shapes):
            with _tf32(trial.precision == "tf32"):
                times = self._how_often(trial)
                taken = [self.clock.seconds(trial.run, times) for _ in range(repeats)]
            rates = [times * trial.work / max(seconds, 1e-9) for seconds in taken]
            found.append((trial._replace(run=_nothing), rates))
        return found

    def _how_often(self, trial: GpuTrial) -> int:
        for _ in range(WARM_UP):
            trial.run()
        return max(1, round(LEAST_SECONDS / max(self.clock.seconds(trial.run, 1), 1e-9)))

    def _all(self, buffer_bytes: int, shapes: Sequence[Shape]) -> Iterator[GpuTrial]:
        yield from moving(buffer_bytes, self.device)
        for shape in dict.fromkeys(shapes):
            for precision in PRECISIONS:
                yield multiplying(shape, precision, self.device)


def _nothing() -> None:
    """Stands in for a trial that is over, so that its memory is free."""


def moving(buffer_bytes: int, device: str) -> Iterator[GpuTrial]:
    """Ways to use the memory: a copy, which reads and writes, and a sum, which reads."""
    import torch

    source = torch.ones(max(1, buffer_bytes // 4), device=device)
    target, size = torch.empty_like(source), float(source.numel() * 4)
    yield GpuTrial("bandwidth", "copy, read and write", "fp32", None, 2 * size, lambda: target.copy_(source))
    yield GpuTrial("bandwidth", "sum", "fp32", None, size, source.sum)


def multiplying(shape: Shape, precision: Precision, device: str) -> GpuTrial:
    """A product of two matrices of normal numbers: zeros would draw less power, and run faster."""
    import torch

    m, k, n = shape
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind: Any = types.get(precision, torch.float32)
    left, right = torch.randn(m, k, device=device).to(kind), torch.randn(n, k, device=device).to(kind)
    out = torch.empty(m, n, device=device, dtype=kind)
    return GpuTrial("gemm", "mm", precision, shape, 2.0 * m * k * n, lambda: torch.mm(left, right.T, out=out))


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """TF32 for products of float32, or not, for the length of the context."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
