"""Tables of speed: how many times faster, latency by load and batch size, load at a rate, saturation."""

from bench.report import wording
from bench.report.schema import CandidateReport, Latency, Report, Speedup
from bench.report.table import Cell, Table, by_reference, row, without_empty_columns

DEVICE_NOTE = (
    "Means over calls that were traced, after the timed ones. Kernels and copies: the time that each takes "
    "on the GPU, summed. GPU busy: both, over the median of the timed calls; the rest it waits for the "
    "host to launch them, which CUDA graphs save."
)
CHANCE = "A/A: the same model in two processes may differ by so much; less than that says nothing."


def speed_tables(report: Report) -> list[Table]:
    """How many times faster at each batch size, with its A/A floor; one table per reference and load."""
    found = []
    for against, group in by_reference(report):
        for load in dict.fromkeys(s.load for each in group for s in each.speedup):
            batches = sorted({s.batch for each in group for s in each.speedup if s.load == load})
            rows = []
            for each in group:
                speed = {s.batch: s for s in each.speedup if s.load == load}
                if speed:
                    cells = (cell for batch in batches for cell in _speed_cells(speed.get(batch)))
                    rows.append((Cell(each.candidate), *cells))
            note = "Median time, reference / candidate; 95% bootstrap interval over rounds in brackets."
            if any(s.noise is not None for each in group for s in each.speedup if s.load == load):
                note += f" {CHANCE}"
            header = ("candidate", *(name for batch in batches for name in (f"batch {batch}", "A/A")))
            table = Table(f"Speed on {wording.load(load)}, against {against}", note, header, rows)
            found.append(without_empty_columns(table, wording.ABSENT))
    return found


def _speed_cells(found: Speedup | None) -> tuple[Cell, Cell]:
    if found is None:
        return Cell(wording.ABSENT), Cell(wording.ABSENT)
    said = Cell(wording.times(found.ratio, found.ci95), wording.speed_tone(found))
    return said, Cell(wording.half_width(found.noise))


def latency_tables(report: Report) -> list[Table]:
    """One table per load: every candidate at every batch size, and at every rate of an open loop."""
    found = []
    for load in dict.fromkeys(entry.load for each in report.candidates for entry in each.latency):
        entries = [
            (each, entry) for each in report.candidates for entry in each.latency if entry.load == load
        ]
        if load == "open-loop":
            found.append(_open_loop_table(entries))
            continue
        entries.sort(key=lambda pair: pair[1].batch)
        note = "Milliseconds per call; p95 needs 20 samples, p99 needs 100."
        header = (
            "candidate",
            "batch",
            "threads",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "on device ms",
            "users / s",
            "samples",
            "mean length",
        )
        rows = [_latency_row(each, entry) for each, entry in entries]
        table = Table(f"Latency, {wording.load(load)}", note, header, rows)
        found.append(without_empty_columns(table, wording.ABSENT))
    return found


def _latency_row(candidate: CandidateReport, entry: Latency) -> tuple[Cell, ...]:
    return row(
        candidate.name, str(entry.batch), str(entry.threads), *_percentiles(entry),
        wording.significant(entry.device_ms), wording.significant(entry.users_per_second),
        f"{entry.samples:,}", f"{entry.length:g}",
    )  # fmt: skip


def device_tables(report: Report) -> list[Table]:
    """What calls on a GPU consist of, one table per load."""
    found = []
    for load in dict.fromkeys(entry.load for each in report.candidates for entry in each.latency):
        entries = [
            (each, entry)
            for each in report.candidates
            for entry in each.latency
            if entry.load == load and entry.kernels_ms is not None
        ]
        entries.sort(key=lambda pair: pair[1].batch)
        rows = [_device_row(each, entry) for each, entry in entries]
        header = (
            "candidate", "batch", "p50 ms", "between events ms", "kernels ms", "GPU busy", "copies in ms",
            "copies out ms", "bytes in", "bytes out",
        )  # fmt: skip
        table = Table(f"On the GPU, {wording.load(load)}", DEVICE_NOTE, header, rows)
        found.append(without_empty_columns(table, wording.ABSENT))
    return found


def _device_row(candidate: CandidateReport, entry: Latency) -> tuple[Cell, ...]:
    parts = [part or 0.0 for part in (entry.kernels_ms, entry.to_device_ms, entry.to_host_ms)]
    moved = [entry.to_device_bytes, entry.to_host_bytes]
    return row(
        candidate.name,
        str(entry.batch),
        wording.significant(entry.p50_ms),
        wording.significant(entry.device_ms),
        wording.significant(entry.kernels_ms),
        f"{sum(parts) / entry.p50_ms:.0%}",
        wording.significant(entry.to_device_ms),
        wording.significant(entry.to_host_ms),
        *(wording.ABSENT if each is None else wording.size(round(each)) for each in moved),
    )


def _percentiles(entry: Latency) -> list[str]:
    return [wording.significant(value) for value in (entry.p50_ms, entry.p95_ms, entry.p99_ms)]


def _open_loop_table(entries: list[tuple[CandidateReport, Latency]]) -> Table:
    kept = {True: "yes", False: "no", None: wording.ABSENT}
    rows = [
        row(
            each.name, str(entry.batch), wording.significant(entry.rate), *_percentiles(entry),
            wording.significant(entry.users_per_second), kept[entry.kept_up],
            wording.ABSENT if entry.unanswered is None else f"{entry.unanswered:,}", f"{entry.samples:,}",
        )
        for each, entry in entries
    ]  # fmt: skip
    table = Table(
        "Latency under load, open loop",
        "Requests arrive at a rate, whether or not the one before was answered; milliseconds from arrival to "
        "answer, waiting included. Batch: most requests that are answered together.",
        (
            "candidate",
            "batch",
            "offered / s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "answered / s",
            "kept up",
            "unanswered",
            "requests",
        ),
        rows,
    )
    return without_empty_columns(table, wording.ABSENT)


def saturation_table(report: Report) -> Table:
    """The highest rate that each candidate keeps up with."""
    rows = [
        row(
            each.candidate,
            str(each.batch),
            wording.significant(each.users_per_second),
            wording.ABSENT if each.limit_ms is None else f"{wording.significant(each.limit_ms)} ms",
        )
        for each in report.sections.saturation or []
    ]
    table = Table(
        "Saturation",
        "The highest offered rate that one process kept up with: beyond it requests queue up.",
        ("candidate", "batch", "users / s", "p99 limit"),
        rows,
    )
    return without_empty_columns(table, wording.ABSENT)
