"""What the machine does at best, measured in this process: reading memory and multiplying matrices, in fp32.

Every library that candidates run on gets its try; the best one counts, and each says which it was. Tries are
repeated in turn, so that a machine that is shared shows it.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Shape = tuple[int, int, int]
"""(m, k, n): an [m, k] matrix times a [k, n] one."""

COLUMNS = 256  # of the buffer, where it is read as a matrix
LEAST_SECONDS = 0.004
"""Short products are repeated until a measurement takes that long."""

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Trial(NamedTuple):
    """One way to reach a peak."""

    what: Literal["bandwidth", "gemm"]
    library: str
    how: str
    shape: Shape | None
    work: float  # bytes or FLOPs of one run
    run: Callable[[], object]


@dataclass
class Bench:
    """Trials that are kept between two measurements, with the memory that they read."""

    threads: int
    trials: dict[tuple[object, ...], list[Trial]] = field(default_factory=dict)

    def rates(
        self, *, buffer_bytes: int, shapes: Sequence[Shape], repeats: int
    ) -> list[tuple[Trial, list[float]]]:
        """Bytes or FLOPs per second of every trial, `repeats` of each, in turn."""
        found = list(self._all(buffer_bytes, shapes))
        often = [_how_often(trial) for trial in found]
        rates: list[list[float]] = [[] for _ in found]
        for _ in range(repeats):
            for trial, times, own in zip(found, often, rates, strict=True):
                own.append(times * trial.work / _seconds(trial, times))
        return list(zip(found, rates, strict=True))

    def _all(self, buffer_bytes: int, shapes: Sequence[Shape]) -> Iterator[Trial]:
        if ("bandwidth", buffer_bytes) not in self.trials:
            self.trials["bandwidth", buffer_bytes] = list(reading(buffer_bytes, self.threads))
        yield from self.trials["bandwidth", buffer_bytes]
        for shape in dict.fromkeys(shapes):
            if shape not in self.trials:
                self.trials[shape] = list(multiplying(shape, self.threads))
            yield from self.trials[shape]


def _how_often(trial: Trial) -> int:
    """Runs per measurement, after two that warm up."""
    trial.run()
    once = _seconds(trial, 1)
    return max(1, round(LEAST_SECONDS / max(once, 1e-9)))


def _seconds(trial: Trial, times: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(times):
        trial.run()
    return max(time.perf_counter_ns() - started, 1) / 1e9


def reading(buffer_bytes: int, threads: int) -> Iterator[Trial]:
    """Ways to read a buffer from end to end: as a matrix times a vector, which is what scoring does, and as a
    sum.
    """
    rows = max(1, buffer_bytes // (4 * COLUMNS))
    buffer, vector = np.ones((rows, COLUMNS), np.float32), np.ones(COLUMNS, np.float32)
    out, size = np.empty(rows, np.float32), float(buffer.nbytes)
    by_vector = "matrix times vector"
    yield Trial(
        "bandwidth", "numpy", by_vector, None, size, lambda: np.matmul(buffer, vector, out=out)
    )  # fmt: skip
    if has("torch"):
        import torch

        torch.set_num_threads(threads)
        matrix, column = torch.from_numpy(buffer), torch.from_numpy(vector)
        made = torch.empty(rows)
        yield Trial(
            "bandwidth", "torch", by_vector, None, size, lambda: torch.mv(matrix, column, out=made)
        )  # fmt: skip
        yield Trial("bandwidth", "torch", "sum", None, size, matrix.sum)


def multiplying(shape: Shape, threads: int) -> Iterator[Trial]:
    """Ways to multiply two matrices of one shape."""
    m, k, n = shape
    flops = 2.0 * m * k * n
    rng = np.random.default_rng(0)
    left, right = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
    out = np.empty((m, n), np.float32)
    yield Trial("gemm", "numpy", "matmul", shape, flops, lambda: np.matmul(left, right, out=out))
    if has("torch"):
        import torch

        torch.set_num_threads(threads)
        a, b, c = torch.from_numpy(left), torch.from_numpy(right), torch.empty(m, n)
        yield Trial("gemm", "torch", "mm", shape, flops, lambda: torch.mm(a, b, out=c))
    if has("onnxruntime") and has("onnx"):
        session = _product_session(right, threads)
        yield Trial(
            "gemm", "onnxruntime", "MatMul", shape, flops, lambda: session.run(None, {"left": left})
        )  # fmt: skip


def _product_session(right: np.ndarray[Any, Any], threads: int) -> Any:
    """A graph of one product, whose right side is a weight, as in a model."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind, (k, n) = TensorProto.FLOAT, right.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["out"])],
        "product",
        [helper.make_tensor_value_info("left", kind, ["m", k])],
        [helper.make_tensor_value_info("out", kind, ["m", n])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def has(library: str) -> bool:
    """Whether it is installed here."""
    return importlib.util.find_spec(library) is not None


def last_level_cache(caches: Path = CACHES) -> int | None:
    """Bytes of the largest cache that the first core has; None where the system does not tell."""
    found = []
    for index in caches.glob("index*"):
        try:
            text = (index / "size").read_text().strip()
            found.append(
                int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
            )
        except (OSError, ValueError, IndexError):
            continue  # a cache that tells no size
    return max(found, default=None)
