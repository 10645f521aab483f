"""Do 2:4 zeros make products faster on this GPU? Dense linear maps against torch's semi-structured ones.

The linear maps of the model of deploy_gpu.py (hidden 512, feed-forward 1536): attention [512, 512], up
[1536, 512], down [512, 1536], as [outputs, inputs], in bf16 and fp16. Rows of input: 50 for each of 1, 32,
256 and 1024 users, and 1 for each, as in a last block that answers for the newest item alone. Ways:
`cusparselt` and `cutlass`, the two backends of torch.sparse.to_sparse_semi_structured (cuSPARSELt with its
default algorithm; its search is not used), and `dense`, a second dense product: how far two of one kind
differ. Launches: `eager`, calls of torch one after the other, and `graph`, the same replayed as a CUDA
graph, without torch's own time on the host. Weights and inputs are random normal numbers, for half of the
weights zeros; `--checkpoint` takes the matrices of a checkpoint made by `sparsify` with pattern "2:4".

Each way takes turns with the dense product, in an order drawn anew each round, between CUDA events. Before
it is timed it has to give the dense product's numbers, up to rounding; a way that does not, or that this
host lacks, has the reason as its row. A row is appended as soon as it is measured, and what is there is not
measured again.

Run: python docs/results/scripts/sparse_gpu.py --out docs/results/raw/sparse_gpu.jsonl
Needs, beside torch: numpy, pydantic; with --checkpoint transformers as well.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_table import rows_of
from sparse_products import (
    Matrices,
    Run,
    captured,
    compressed,
    exactness,
    is_exact,
    matrices_of,
    random_matrices,
)

from bench.compare import MIN_ROUNDS, median_interval, median_ratio
from bench.environment import environment
from bench.gpu_peaks import WARM_UP, Clock, CudaClock, WallClock
from recommender.errors import InputError
from recommender.files import folder_digest

SPARSE = ("cusparselt", "cutlass")
WAYS = (*SPARSE, "dense")
PRECISIONS = ("bf16", "fp16")
LAUNCHES = ("eager", "graph")
USERS, LENGTH = (1, 32, 256, 1024), 50
SHAPES = {"attention": (512, 512), "up": (1536, 512), "down": (512, 1536)}
TINY_USERS, TINY_LENGTH = (1, 4), 3
TINY = {"attention": (16, 16), "up": (24, 16)}
CHAIN = 20
"""Products in one CUDA graph."""
DRAWS = 2_000


class Cell(NamedTuple):
    """One row of the table."""

    matrix: str
    users: int
    positions: int  # of each user
    precision: str
    way: str
    launch: str


def cells(matrices: Sequence[str], *, tiny: bool) -> list[Cell]:
    """All cells; eager ones first, as a capture that fails may break the device for this process."""
    users, length = (TINY_USERS, TINY_LENGTH) if tiny else (USERS, LENGTH)
    every = itertools.product(LAUNCHES, PRECISIONS, (length, 1), users[::-1], matrices, WAYS)
    return [Cell(name, u, n, precision, way, launch) for launch, precision, n, u, name, way in every]


@dataclass
class Rows:
    """The file of rows: what it holds already, of this device, torch and weights."""

    file: Path
    common: Mapping[str, Any]
    retry: bool = False
    done: set[Cell] = field(default_factory=set)

    def __post_init__(self) -> None:
        for row in rows_of(self.file):
            own = all(row.get(name) == self.common[name] for name in OWN)
            if own and not (self.retry and "skipped" in row):
                self.done.add(Cell(*(row[name] for name in Cell._fields)))

    def add(self, cell: Cell, **values: Any) -> None:
        """Append the row of a cell."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"created": created, **self.common, **cell._asdict(), **values}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.done.add(cell)
        told = values.get("skipped") or f"{values['us']:.4g} us, {values['speedup']:.2f}x dense"
        rows = f"{cell.users} x {cell.positions}"
        print(f"{cell.launch:5} {cell.precision} {cell.matrix:10} {rows:>9} {cell.way:10} {told}", flush=True)


OWN = ("device", "gpu", "torch", "tiny", "weights")
"""What tells the rows of one machine, version and set of weights from others."""


@dataclass
class Measuring:
    """What all cells have in common."""

    device: str
    rows: Rows
    matrices: Matrices
    rounds: int
    turn_seconds: float  # a turn is repeated until it takes that long
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = CudaClock(self.device) if self.on_gpu else WallClock()

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one of CUDA's."""
        return self.device.startswith("cuda")

    def cell(self, cell: Cell) -> None:
        """Measure a cell and append its row, or the reason why there is nothing to measure."""
        try:
            found = self._measured(cell)
        except RuntimeError as error:  # as torch says what it lacks, or that memory is short
            found = {"skipped": " ".join(str(error).split())[:500]}
        self.rows.add(cell, **found)
        self._check_device()

    def _measured(self, cell: Cell) -> dict[str, Any]:
        import torch
        from torch.nn.functional import linear

        if not self.on_gpu and (cell.way in SPARSE or cell.launch == "graph"):
            return {"skipped": f"needs CUDA, and the device is {self.device}"}
        kind = torch.bfloat16 if cell.precision == "bf16" else torch.float16
        weight = self.matrices[cell.matrix].to(self.device, kind).contiguous()
        draw = torch.Generator().manual_seed(0)
        given = torch.randn(cell.users * cell.positions, weight.shape[1], generator=draw)
        given = given.to(self.device, kind)
        with torch.inference_mode():
            other = weight if cell.way == "dense" else compressed(weight, cell.way)
            exact = exactness(given, weight, linear(given, other))
            if not is_exact(exact):
                return {"skipped": "its answers are not those of the dense product", **exact}
            runs: dict[str, Run] = {
                "dense": lambda: linear(given, weight),
                "way": lambda: linear(given, other),
            }
            seconds = self._timed(runs, cell.launch)
        shape = {"rows": len(given), "outputs": weight.shape[0], "inputs": weight.shape[1]}
        return {**shape, **numbers(seconds), **exact}

    def _timed(self, runs: Mapping[str, Run], launch: str) -> dict[str, list[float]]:
        """Seconds of one product, by round; in each round both have a turn, in an order drawn anew."""
        inner = CHAIN if launch == "graph" else 1
        if launch == "graph":
            runs = {name: captured(run, inner) for name, run in runs.items()}
        times = {name: self._how_often(run) for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        rng = np.random.default_rng(0)
        for _ in range(self.rounds):
            for name in rng.permutation(list(runs)):
                taken = self.clock.seconds(runs[name], times[name])
                seconds[name].append(taken / times[name] / inner)
        return seconds

    def _how_often(self, run: Run) -> int:
        for _ in range(WARM_UP):
            run()
        return max(1, round(self.turn_seconds / max(self.clock.seconds(run, 1), 1e-9)))

    def _check_device(self) -> None:
        """End the command where an error has left the device unusable for this process."""
        if not self.on_gpu:
            return
        import torch

        try:
            torch.ones(1, device=self.device).add_(1).item()
        except RuntimeError as error:
            raise SystemExit(f"the device answers no more ({error}): call the command again") from error


def numbers(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians in microseconds and how many times as fast as dense, with 95% intervals over rounds."""
    dense, way = (np.asarray(seconds[name]) for name in ("dense", "way"))
    found: dict[str, Any] = {"rounds": len(way)}
    for name, samples in (("us", way), ("dense_us", dense)):
        found[name] = float(np.median(samples)) * 1e6
        spread = median_interval(samples, draws=DRAWS, seed=0)
        found[f"{name}_ci95"] = None if spread is None else [each * 1e6 for each in spread]
    ratio = median_ratio(dense, way, draws=DRAWS, seed=0)
    return {**found, "speedup": ratio.ratio, "speedup_ci95": ratio.ci95}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file of rows, to which is appended")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu only to try the command out")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint folder with 2:4 zeros")
    parser.add_argument("--rounds", type=int, default=30, help=f"of each cell, at least {MIN_ROUNDS}")
    parser.add_argument("--retry", action="store_true", help="measure again what was skipped before")
    parser.add_argument("--tiny", action="store_true", help="few small products, to try the command out")
    return parser.parse_args(given)


def check(options: argparse.Namespace) -> None:
    """End the command where it cannot measure anything."""
    import torch

    if options.rounds < MIN_ROUNDS:
        raise SystemExit(f"--rounds: {options.rounds} give no interval; take {MIN_ROUNDS} or more")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device (--device cpu --tiny tries the command out)"
        )
    if options.device.startswith("cuda"):
        torch.cuda.set_device(torch.device(options.device).index or 0)


def label(checkpoint: Path) -> str:
    """Names the weights of a checkpoint in rows, wherever it lies."""
    return f"{checkpoint.resolve().parent.name} {folder_digest(checkpoint)[:12]}"


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What every row says of the machine and the weights."""
    import torch

    here, on_gpu = environment(), options.device.startswith("cuda")
    cusparselt = getattr(torch.backends, "cusparselt", None)
    capability = ".".join(map(str, torch.cuda.get_device_capability(options.device))) if on_gpu else None
    return {
        "device": options.device,
        "gpu": torch.cuda.get_device_name(options.device) if on_gpu else here.cpu,
        "capability": capability,
        "driver": here.driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cusparselt": None if cusparselt is None else cusparselt.version(),
        "tiny": options.tiny,
        "weights": "random" if options.checkpoint is None else label(options.checkpoint),
        "command": " ".join(["python", "docs/results/scripts/sparse_gpu.py", *sys.argv[1:]]),
    }


def main() -> None:
    """Measure what is missing."""
    options = arguments()
    check(options)
    if options.checkpoint is None:
        matrices = random_matrices(TINY if options.tiny else SHAPES)
    else:
        try:
            matrices = matrices_of(options.checkpoint)
        except InputError as error:
            raise SystemExit(str(error)) from error
    rows = Rows(options.out, common(options), retry=options.retry)
    turn = 1e-4 if options.tiny else 2e-3
    measuring = Measuring(options.device, rows, matrices, options.rounds, turn)
    every = cells(list(matrices), tiny=options.tiny)
    for cell in every:
        if cell not in rows.done:
            measuring.cell(cell)
    print(f"{sum(cell in rows.done for cell in every)} of {len(every)} cells are in {options.out}")


if __name__ == "__main__":
    main()
