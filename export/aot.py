"""Open and run an AOTInductor package (`.pt2`): a scoring graph that was compiled for one kind of machine.

A copy of this file lies beside `runtime.py` in every artifact that holds such a package, as `runtime_aot.py`;
it needs numpy and torch. No compiler is needed to run a package. What it was compiled for (`compiled` in the
manifest) is compared with this machine before any of its code is loaded: foreign instructions end a process.
"""

import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Shape = tuple[int, int, int]
"""Users, items per history, rows not to come back."""

CPU_INFO = Path("/proc/cpuinfo")
EMITTED = (
    "abm", "adx", "asimd", "avx", "bf16", "bmi", "f16c", "fma", "fphp", "gfni", "i8mm", "movbe", "popcnt",
    "sse", "ssse", "sve", "vaes", "vpclmul",
)  # fmt: skip
"""Beginnings of the names of instruction sets that a C++ compiler may use on its own (AMX is not one)."""

NOT_EMITTED = {"avx512_vp2intersect"}  # some CPUs have it, and no compiler uses it unasked

LENGTH_STEP = 8  # histories are filled up to a multiple: fewer shapes, fewer graphs
MOST_SHAPES = 64  # captured at a time; the one that was not used longest goes
WARM_UP = 3  # calls before a capture, so that libraries have allocated what they need
ON_A_GPU = (1 << 22, 1 << 22, 1 << 31)
"""`per_call` of a GPU: a batch stays whole up to so many tokens, so much padding, so many scores."""

Loaded = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


def machine(device: str) -> dict[str, Any]:
    """What code that is compiled here for `device` is tied to.

    Raises ValueError where there is no such device.
    """
    told: dict[str, Any] = {
        "device": device, "platform": sys.platform, "machine": platform.machine(),
        "torch": torch.__version__, "cpu": _cpu_line("model name"), "instructions": instructions(),
    }  # fmt: skip
    if device == "cuda":
        told |= _gpu()
    return told


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} sees no CUDA device here")
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
    }


def instructions() -> list[str]:
    """Instruction sets of this CPU that compiled code may use, sorted; none where the system tells none."""
    flags = (_cpu_line("flags") or _cpu_line("Features")).split()
    return sorted(flag for flag in flags if flag.startswith(EMITTED) and flag not in NOT_EMITTED)


def _cpu_line(name: str) -> str:
    """The first entry of this name in /proc/cpuinfo."""
    if not CPU_INFO.is_file():
        return ""
    for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def check_machine(told: Mapping[str, Any], device: str) -> None:
    """Raise ValueError, naming both sides, unless what was compiled for `told` can run here on `device`."""
    try:
        made_for, system = str(told["device"]), (str(told["platform"]), str(told["machine"]))
        needs, cpu = set(told["instructions"]), str(told["cpu"]) or "another CPU"
        gpu = None if made_for != "cuda" else (str(told["gpu"]), str(told["capability"]), str(told["cuda"]))
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"the manifest does not say what it was compiled for ({error!r}); export the artifact again"
        ) from error
    if device != made_for:
        raise ValueError(
            f"it was compiled for {made_for}, not for {device}; open it with device={made_for!r}"
        )
    if system != (sys.platform, platform.machine()):
        here = f"{sys.platform} on {platform.machine()}"
        raise ValueError(f"it was compiled for {' on '.join(system)}, this is {here}; export it again here")
    if lacking := sorted(needs - set(instructions())):
        here = _cpu_line("model name") or platform.machine()
        raise ValueError(
            f"it was compiled on {cpu} and may use {', '.join(lacking)}, which this CPU ({here}) does not "
            "have; export it again on a machine of this kind, or open another variant"
        )
    if gpu is not None:
        _check_gpu(*gpu)


def _check_gpu(name: str, capability: str, cuda: str) -> None:
    made_for = f"it was compiled for {name} (compute capability {capability}, CUDA {cuda})"
    try:
        here = _gpu()
    except ValueError as error:
        raise ValueError(f"{made_for}, and {error}") from error
    same_cuda = cuda.partition(".")[0] == here["cuda"].partition(".")[0]
    if capability != here["capability"] or not same_cuda:
        raise ValueError(
            f"{made_for}, this is {here['gpu']} (compute capability {here['capability']}, CUDA "
            f"{here['cuda']}); export it again on a machine of this kind"
        )


def open_engine(path: Path, entry: Mapping[str, Any], threads: int | None, device: str) -> "Package":
    """Open the package of a variant, whose entry in the manifest is given.

    `threads`: of one call; None leaves the choice to torch. Raises ValueError, naming both sides, for a
    package of another machine or of a torch whose packages this one cannot load.
    """
    told = entry.get("compiled")
    if not isinstance(told, Mapping):
        raise ValueError("the manifest does not say what it was compiled for; export the artifact again")
    check_machine(told, device)
    loaded = _load(path, str(told.get("torch", "another torch")), alone=device == "cuda")
    graphs = None
    batches = [int(size) for size in told.get("cuda_graph_batches", ())]
    if device == "cuda" and batches:
        graphs = Graphs(CudaCapture(loaded), batches, longest=int(entry["max_length"]))
    return Package(loaded, top_k=int(entry["top_k"]), threads=threads, graphs=graphs, device=device)


def _load(path: Path, torch_of_package: str, *, alone: bool) -> Loaded:
    """The package as a function. `alone`: without locks of its own, which no CUDA graph can hold."""
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", alone, 1, -1)
    except (RuntimeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"torch {torch.__version__} cannot load it ({first}); it was compiled with torch "
            f"{torch_of_package}: install that one, or export it again with this one"
        ) from error
    run: Loaded = loader.run
    return run


class Package:
    """An open package; several threads may use it at once.

    `graphs`: captured CUDA graphs, which answer what they have a batch for. `device`: where it runs.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        top_k: int,
        threads: int | None,
        graphs: "Graphs | None" = None,
        device: str = "cpu",
    ) -> None:
        self._loaded, self._top_k, self._threads = loaded, top_k, threads
        self._graphs, self._device = graphs, device
        self._turn = threading.Lock()
        self.runtime = f"torch {torch.__version__} (AOTInductor)"
        self.per_call: tuple[int, int, int] | None = ON_A_GPU if device == "cuda" else None

    def run(self, outputs: Sequence[str], given: Mapping[str, Any]) -> list[Any]:
        """`top_items` int64 and `scores` float32 [B, k] of `items` int64 [B, L] and `seen` int64 [B, S]."""
        items, seen = (np.require(given[name], np.int64, ["C", "W"]) for name in ("items", "seen"))
        if not len(items):  # compiled for one user and more
            nobody = (0, self._top_k)
            answer: list[Any] = [np.zeros(nobody, np.int64), np.zeros(nobody, np.float32)]
        elif self._device == "cpu":
            answer = self._on_cpu(items, seen)
        else:
            with self._turn:  # one stream, and buffers that graphs share
                answer = self._on_gpu(items, seen)
        named = dict(zip(("top_items", "scores"), answer, strict=True))
        return [named[name] for name in outputs]

    def _on_cpu(self, items: Int64, seen: Int64) -> list[Any]:
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of the calling thread, so each has to say it
        return [each.numpy() for each in self._loaded([torch.from_numpy(items), torch.from_numpy(seen)])]

    def _on_gpu(self, items: Int64, seen: Int64) -> list[Any]:
        if self._graphs is not None and self._graphs.serve(len(items)):
            return self._graphs.run(items, seen)
        here = [torch.from_numpy(each).to(self._device) for each in (items, seen)]
        return [each.cpu().numpy() for each in self._loaded(here)]


class Captured(Protocol):
    """A graph of one shape."""

    def replay(self, items: Int64, seen: Int64) -> Sequence[Any]:
        """The outputs [B, k] of inputs of just this shape, as arrays."""


class Graphs:
    """Captured graphs by shape: made when a shape first comes, replayed afterwards.

    `batches`: numbers of users that there may be a graph for; fewer users are filled up with empty
    histories, more are not served. Lengths are filled up to a multiple of 8 and no further than `longest`,
    the rows that must not come back to a power of two, both with padding, which changes no answer.
    """

    def __init__(
        self,
        capture: Callable[[Shape], Captured],
        batches: Sequence[int],
        *,
        longest: int,
        most: int = MOST_SHAPES,
    ) -> None:
        self._capture, self._batches, self._longest, self._most = capture, sorted(batches), longest, most
        self._captured: OrderedDict[Shape, Captured] = OrderedDict()

    def serve(self, users: int) -> bool:
        """Whether there may be a graph for so many users."""
        return 0 < users <= self._batches[-1]

    def shape_for(self, users: int, length: int, seen: int) -> Shape:
        """The shape that a call is filled up to."""
        batch = next(size for size in self._batches if size >= users)
        filled = min(-(-length // LENGTH_STEP) * LENGTH_STEP, max(self._longest, length))
        return batch, filled, 1 << max(0, seen - 1).bit_length()

    def run(self, items: Int64, seen: Int64) -> list[Any]:
        """The outputs [B, k] of items [B, L] and seen [B, S]."""
        shape = batch, length, width = self.shape_for(len(items), items.shape[1], seen.shape[1])
        if shape in self._captured:
            self._captured.move_to_end(shape)
        else:
            if len(self._captured) >= self._most:
                self._captured.popitem(last=False)
            self._captured[shape] = self._capture(shape)
        below = batch - len(items)
        full_items = np.pad(items, ((0, below), (length - items.shape[1], 0)))
        full_seen = np.pad(seen, ((0, below), (0, width - seen.shape[1])))
        return [each[: len(items)] for each in self._captured[shape].replay(full_items, full_seen)]


class CudaCapture:
    """Captures a package at one shape; all graphs share one pool of memory, as one runs at a time."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, shape: Shape) -> Captured:
        """Run it a few times on a stream of its own, then capture."""
        batch, length, width = shape
        inputs = [torch.zeros((batch, n), dtype=torch.int64, device="cuda") for n in (length, width)]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._loaded(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = self._loaded(inputs)
        return CudaGraph(graph, inputs, outputs)


class CudaGraph:
    """A captured package: the buffers that it reads and writes, and how to run it again."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        self._graph, self._inputs, self._outputs = graph, inputs, outputs

    def replay(self, items: Int64, seen: Int64) -> list[Any]:
        """Copy the inputs in, run, copy the outputs out."""
        for buffer, given in zip(self._inputs, (items, seen), strict=True):
            buffer.copy_(torch.from_numpy(given))
        self._graph.replay()
        return [each.cpu().numpy() for each in self._outputs]
