"""The rows of scripts/deploy_gpu.py: which cells there are, in which order, and which are there already."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from gpu_candidates import BATCHES, EVERY_WAY, SIZES

from bench.report.roofline_parts import GpuMachine

ENDS, MIDDLE = (1, 1024), (32, 256)
MAIN = ("eager", "graphs-bf16", "aot-bf16", "bf16")


class Job(NamedTuple):
    """Cells that one child measures."""

    model: str
    items: int
    way: str
    batches: tuple[int, ...]


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """What was appended so far; nothing where there is no file. Ends the command at a line that is no row."""
    lines = file.read_text().splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise SystemExit(f"{file}:{number}: is no row ({error}); remove the line") from error


def jobs(*, quick: bool, ways: Sequence[str], tiny: bool = False) -> Iterator[Job]:
    """All cells, the most important first; the jobs of one model and catalogue stand together in a wave.

    `tiny`: with a hundredth of the items.
    """
    rest = tuple(way for way in EVERY_WAY if way not in MAIN)
    waves = [(12_000, MAIN, ENDS), (1_000_000, MAIN, ENDS), (12_000, rest, ENDS)]
    if not quick:
        waves += [(12_000, MAIN, MIDDLE), (1_000_000, MAIN, MIDDLE), (100_000, MAIN, BATCHES)]
        waves += [(1_000_000, rest, ENDS), (12_000, rest, MIDDLE)]
        waves += [(100_000, rest, BATCHES), (1_000_000, rest, MIDDLE)]
    for items, chosen, batches in waves:
        for model in SIZES:
            count = items // 100 if tiny else items
            yield from (Job(model, count, way, batches) for way in chosen if way in ways)


@dataclass
class Table:
    """The file of rows: what it holds already, for this device."""

    file: Path
    device: str
    common: Mapping[str, Any]
    retry: bool = False
    done: set[tuple[str, int, str, int]] = field(default_factory=set)
    machine: GpuMachine | None = None

    def __post_init__(self) -> None:
        own = (self.device, self.common["gpu"], self.common["tiny"])
        for row in rows_of(self.file):
            if (row["device"], row["gpu"], row["tiny"]) != own:
                continue  # of another machine
            if row["kind"] == "machine":
                self.machine = GpuMachine.model_validate(row["machine"])
            elif not (self.retry and "skipped" in row):
                self.done.add((row["model"], row["items"], row["way"], row["batch"]))

    def missing(self, job: Job) -> tuple[int, ...]:
        """Batch sizes of a job that have no row yet, ascending."""
        every = sorted(job.batches)
        return tuple(each for each in every if (job.model, job.items, job.way, each) not in self.done)

    def add(self, kind: str, **values: Any) -> None:
        """Append one row."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"kind": kind, "created": created, "device": self.device, **self.common, **values}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if kind == "cell":
            self.done.add((row["model"], row["items"], row["way"], row["batch"]))
            told = row.get("skipped") or f"{row['p50_ms']:.3g} ms, {row['share_of_bound']:.0%} of the bound"
            cell = f"{row['model']:8} {row['items']:>9,} items  batch {row['batch']:>4}  {row['way']:13}"
            print(f"{cell} {told}", flush=True)
