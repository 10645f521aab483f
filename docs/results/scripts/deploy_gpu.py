"""How fast is a recommender on this GPU, in torch and compiled? The whole table, on a host with few packages.

A Llama-shaped teacher of 32 blocks and a student of 4: hidden 512, 8 heads, feed-forward 1536, item vectors
of 64 numbers, full histories of 50 items that must not come back, lists of 10. Catalogues of 12,000, 100,000
and 1,000,000 items; 1, 32, 256 and 1024 users a call. Weights are random: speed does not hang on them, and no
data set is needed. Ways: torch eager in float32, TF32 and bf16, compiled, through CUDA graphs; AOTInductor
packages and native TensorRT engines (bf16, fp16) with CUDA graphs; onnxruntime's CUDA and TensorRT providers.
A way that this host lacks has its reason as a row.

Each way sits in a child process and takes turns with eager float32 in another (`recpress bench`'s
machinery). The most important cells come first. A row is appended as soon as it is measured; what is there
already is not measured again, so the command can be repeated until nothing is left.

Run: python docs/results/scripts/deploy_gpu.py --out docs/results/raw/deploy_gpu.jsonl [--quick]
Needs, beside torch and transformers: pydantic; for energy nvidia-ml-py; for AOTInductor, ONNX and engines
optimum; for engines TensorRT 10.12 to 11.x.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gpu_candidates import BATCHES, EVERY_WAY, SIZES, K, Precisions, Size, build, precisions, reference_to
from gpu_table import Job, Table, jobs

from bench import energy
from bench.child import Child, ChildFailed
from bench.crew import TWIN, Crew, Limits
from bench.device_work import CALLS
from bench.environment import environment, usable_cores
from bench.gpu_roofline import GpuPeaks, gpu_machine, gpu_row
from bench.latency import Timed, latency, speedup
from bench.loads import Load
from bench.roofline import mean_work
from bench.timing import time_cell
from recommender.cost import CostFormulas
from recommender.errors import InputError
from recommender.scoring import HistoryArrays

EAGER = "eager"
BATCHES_OF_A_LOAD = 8
DRAWS = 2_000
TINY = {"teacher": Size(2, 16, 2, 24, 8, 12), "student": Size(1, 16, 2, 24, 8, 12)}


@dataclass
class Measuring:
    """What all cells have in common."""

    table: Table
    sizes: Mapping[str, Size]
    device: str
    threads: int
    until: float  # of time.monotonic()
    seconds: float  # of timed calls, per cell
    burst: float  # of calls between two readings of the energy
    cache: Path
    formulas: dict[tuple[str, Precisions], CostFormulas] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        return self.until - time.monotonic()

    @cached_property
    def meter(self) -> energy.EnergyMeter | None:
        """Of the device; None, and a line on stderr, where there is none."""
        return energy.meter(self.device, note=lambda text: print(text, file=sys.stderr))

    def measure_machine(self, *, buffer_bytes: int, square: int) -> None:
        """The peaks, once per file and GPU."""
        if self.table.machine is not None:
            return
        peaks = GpuPeaks(
            self.device, threads=self.threads, cores=(), seconds=max(self.left, 60), repeats=5,
            buffer_bytes=buffer_bytes, square=square,
        )  # fmt: skip
        try:
            peaks.measure()
        finally:
            peaks.child.end()
        if peaks.failed is not None:
            raise SystemExit(f"the device cannot be measured: the process that does it {peaks.failed}")
        found = gpu_machine(
            peaks.trials(), device=self.device, name=self.table.common["gpu"], buffer_bytes=buffer_bytes
        )
        assert found is not None
        self.table.machine = found
        self.table.add("machine", machine=found.model_dump(mode="json", exclude_none=True))

    def group(self, model: str, items: int, wave: Sequence[Job]) -> None:
        """Every way of one model and catalogue, in turns with eager float32."""
        with Crew(Limits(opening=max(self.left, 60), call=120), self.threads) as crew:
            self._open(crew, model, items, EAGER, EAGER, BATCHES)
            for job in wave:
                if self.left <= 0:
                    return
                missing = self.table.missing(job)
                if missing:
                    self._job(crew, job, missing)

    def _open(
        self, crew: Crew, model: str, items: int, way: str, name: str, batches: Sequence[int]
    ) -> str | None:
        """Open a child; what went wrong, or None."""
        ref = reference_to(way, self.sizes[model], items, batches=batches, cache=self.cache)
        try:
            crew.open(name, ref, self.device)
        except InputError as error:
            crew.children.pop(name)
            return " ".join(str(error).split())
        return crew.failures[name].text if name in crew.failures else None

    def _job(self, crew: Crew, job: Job, missing: Sequence[int]) -> None:
        name = job.way if job.way != EAGER else EAGER + TWIN  # eager against itself tells of the noise
        wrong = self._open(crew, job.model, job.items, job.way, name, job.batches)
        for batch in missing:
            if wrong is None and self.left > 0:
                wrong = self._cell(crew, job, name, batch)
            if wrong is not None and self.left > 0:  # not for want of time
                cell = {"model": job.model, "items": job.items, "way": job.way, "batch": batch}
                self.table.add("cell", **cell, skipped=wrong)
        if name in crew.children:
            crew.children.pop(name).end()

    def _cell(self, crew: Crew, job: Job, name: str, batch: int) -> str | None:
        """Measure one cell and append its row; what went wrong, or None."""
        load = load_of(job.items, batch, self.sizes[job.model].length)
        timed = time_cell(
            crew, load, EAGER, k=K, rounds=100, warmup=3, seed=0, budget_seconds=self.seconds
        )  # fmt: skip
        child = crew.children.get(EAGER if job.way == EAGER else name)
        if child is None or job.way not in timed.seconds:
            failure = crew.failures.get(name) or crew.failures.get(EAGER)
            return "it was not timed" if failure is None else failure.text
        row = {
            "model": job.model, "layers": self.sizes[job.model].layers, "items": job.items, "way": job.way,
            **latency(timed, job.way).model_dump(exclude_none=True), **against_eager(timed, job.way),
            **self._roofline(job, timed), "opening_seconds": crew.opening_seconds[name],
        }  # fmt: skip
        try:
            row |= self._on_device(child)
            row |= self._energy(child, batch)
        except ChildFailed as failure:  # what was timed stands
            crew.fail(child.name, failure)
            row["lost"] = failure.text
        except energy.UNREADABLE as error:
            row["energy_lost"] = energy.reason(error)
        self.table.add("cell", **row)
        return None

    def _on_device(self, child: Child) -> dict[str, Any]:
        """Kernels, copies and memory of a GPU, as far as they can be told."""
        if not self.device.startswith("cuda"):
            return {}
        work = child.device_work(K, calls=CALLS, seconds=120)
        found: dict[str, Any] = {"not_traced": work} if isinstance(work, str) else work._asdict()
        peak = child.peak(seconds=120)[1]
        return found if peak is None else {**found, "peak_device_bytes": peak}

    def _energy(self, child: Child, batch: int) -> dict[str, Any]:
        """Power and energy per user of calls one after the other; nothing without a counter."""
        if self.meter is None:
            return {}
        before = self.meter.read()
        seconds, users = child.burst(K, lasting=self.burst, seconds=120)
        joules = self.meter.joules(before, self.meter.read())
        spent = energy.energy(joules, seconds, users, source=self.meter.source, load="full", batch=batch)
        return {} if spent is None else {"watts": spent.watts, "joules_per_user": spent.joules_per_user}

    def _roofline(self, job: Job, timed: Timed) -> dict[str, Any]:
        computes = precisions(job.way, self.device)
        formulas = self._formulas(job.model, computes)
        works = mean_work(formulas, timed.load, K, job.items + 1)
        machine = self.table.machine
        assert machine is not None
        row = gpu_row(job.way, timed, formulas, works, machine, tf32=computes.tf32)
        told = ("flops", "bytes", "compute_ms", "bandwidth_ms", "bound_ms", "bound_by", "precision",
                "share_of_bound", "share_on_device")  # fmt: skip
        return row.model_dump(include=set(told), exclude_none=True)

    def _formulas(self, model: str, computes: Precisions) -> CostFormulas:
        """What a call costs, counted from a model of one item: how many there are is told for each cell.

        Bytes are those of the table as it is stored, and its product counts as what it computes in.
        """
        from recommender.models.cost import cost_card

        key = (model, computes)
        if key not in self.formulas:
            one = build(self.sizes[model], 1)
            card = cost_card(one, precision=computes.body, table_precision=computes.table)
            found = CostFormulas.model_validate(card)
            self.formulas[key] = found.model_copy(update={"table_precision": computes.scoring})
        return self.formulas[key]


def groups(every: Sequence[Job]) -> list[tuple[tuple[str, int], list[Job]]]:
    """Jobs that follow one another with one model and catalogue."""
    grouped = itertools.groupby(every, key=lambda job: (job.model, job.items))
    return [(key, list(found)) for key, found in grouped]


def against_eager(timed: Timed, way: str) -> dict[str, Any]:
    """How many times as fast as eager float32 in the same rounds; of eager itself: the A/A floor."""
    if EAGER not in timed.seconds:
        return {}
    found = speedup(timed, way, EAGER, draws=DRAWS, seed=0)
    if way == EAGER:
        return {"aa_floor": found.aa_floor, "aa_ci95": found.aa_ci95}
    return {"speedup": found.ratio, "speedup_ci95": found.ci95}


def load_of(items: int, batch: int, length: int) -> Load:
    """Full histories of random rows, which must not come back."""
    rng = np.random.default_rng((items, batch))
    rows = [rng.integers(1, items + 1, (batch, length)) for _ in range(BATCHES_OF_A_LOAD)]
    return Load("full", batch, [HistoryArrays(each, each) for each in rows])


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file of rows, to which is appended")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu only to try the command out")
    parser.add_argument("--minutes", type=float, default=25, help="begin no cell after that")
    parser.add_argument(
        "--quick", action="store_true", help="the most important third of the cells, in less time"
    )
    parser.add_argument("--ways", default=",".join(EVERY_WAY), help="only these, separated by commas")
    parser.add_argument("--threads", type=int, default=min(4, usable_cores()))
    parser.add_argument("--retry", action="store_true", help="measure again what was skipped before")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "recpress-deploy-gpu",
        help="folder of compiled packages and engines, used again where they fit this machine",
    )  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="models of a few numbers, to try the command out")
    return parser.parse_args(given)


def main() -> None:
    """Measure what is missing, as long as there is time."""
    options = arguments()
    ways = options.ways.split(",")
    if wrong := [way for way in ways if way not in EVERY_WAY]:
        raise SystemExit(f"--ways: {', '.join(wrong)} is none of {', '.join(EVERY_WAY)}")
    if options.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(
                f"torch {torch.__version__} sees no CUDA device (--device cpu tries the command out)"
            )
    here = environment()
    gpu = here.gpu if options.device.startswith("cuda") else here.cpu
    command = " ".join(["python", "docs/results/scripts/deploy_gpu.py", *sys.argv[1:]])
    common = {
        "gpu": gpu,
        "tiny": options.tiny,
        "torch": here.torch,
        "driver": here.driver,
        "command": command,
    }
    table = Table(options.out, options.device, common, retry=options.retry)
    measuring = Measuring(
        table, TINY if options.tiny else SIZES, options.device, options.threads,
        until=time.monotonic() + 60 * options.minutes, seconds=1.0 if options.quick else 3.0,
        burst=1.2 if options.quick else 2.0, cache=options.cache,
    )  # fmt: skip
    measuring.measure_machine(
        buffer_bytes=1 << 16 if options.tiny else 1 << 30, square=16 if options.tiny else 8192
    )
    every = list(jobs(quick=options.quick, ways=ways, tiny=options.tiny))
    for (model, items), wave in groups(every):
        if measuring.left > 0 and any(table.missing(job) for job in wave):
            measuring.group(model, items, wave)
    open_cells = sum(len(table.missing(job)) for job in every)
    print(f"{open_cells} of {sum(len(job.batches) for job in every)} cells are still to be measured")


if __name__ == "__main__":
    main()
