"""What a GPU does during calls, whoever asks it: kernels and copies, as CUDA's own tracing sees them.

Tracing slows a call down, so it has calls of its own, after the timed ones. It sees the whole process: torch,
onnxruntime and TensorRT alike, and the kernels inside of CUDA graphs.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

CALLS = 5
"""That are traced for each load and batch size."""


class DeviceWork(NamedTuple):
    """Of one call, mean over the traced ones; copies within the device count as kernels."""

    kernels_ms: float
    to_device_ms: float
    to_host_ms: float
    to_device_bytes: float
    to_host_bytes: float


class Tracer(Protocol):
    """Runs something and tells what the GPU did meanwhile."""

    def __call__(self, run: Callable[[], object]) -> Iterable[Mapping[str, Any]]:
        """Events in Chrome's format: `cat` (kernel, gpu_memcpy, gpu_memset, ...), `name`, `dur` in
        microseconds, `args`, in which copies have `bytes`.
        """
        ...


class NothingTracedError(Exception):
    """The GPU was not seen to do anything; the text says why, as the end of a sentence."""


def device_work(run: Callable[[], object], *, calls: int, trace: Tracer | None = None) -> DeviceWork:
    """What one of `calls` runs asks of the GPU; one more comes before, untraced.

    Raises NothingTracedError where tracing fails or sees nothing.
    """
    run()

    def every() -> None:
        for _ in range(calls):
            run()

    return summed((trace or cuda_trace)(every), calls)


def summed(events: Iterable[Mapping[str, Any]], calls: int) -> DeviceWork:
    """The work of one call out of the events of `calls`. Raises NothingTracedError where there are none."""
    spent = dict.fromkeys(("kernels", "in", "out"), 0.0)
    moved = dict.fromkeys(("kernels", "in", "out"), 0.0)
    seen = 0
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        seen += 1
        way = _way(event)
        spent[way] += float(event.get("dur", 0.0)) / 1e3
        moved[way] += float(event.get("args", {}).get("bytes", 0))
    if not seen:
        raise NothingTracedError("CUDA's tracing (CUPTI) saw no kernel, as it does where it is not allowed")
    return DeviceWork(
        kernels_ms=spent["kernels"] / calls,
        to_device_ms=spent["in"] / calls,
        to_host_ms=spent["out"] / calls,
        to_device_bytes=moved["in"] / calls,
        to_host_bytes=moved["out"] / calls,
    )


def _way(event: Mapping[str, Any]) -> str:
    """Copies by where they go, by the name that CUPTI gives them: `Memcpy HtoD (Pageable -> Device)`."""
    if event["cat"] == "gpu_memcpy":
        name = str(event.get("name", ""))
        return "in" if "HtoD" in name else "out" if "DtoH" in name else "kernels"
    return "kernels"


def cuda_trace(run: Callable[[], object]) -> list[Mapping[str, Any]]:
    """Run under torch's profiler; what it writes. Raises NothingTracedError where it cannot."""
    import torch

    with tempfile.TemporaryDirectory(prefix="recpress-trace-") as folder:
        file = Path(folder) / "trace.json"
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
                run()
                torch.cuda.synchronize()
            found.export_chrome_trace(str(file))
            events: list[Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
        except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise NothingTracedError(f"torch's profiler failed ({said})") from error
    return events
