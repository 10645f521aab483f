"""Tables of the roofline: calls against the machine, the split of their time, the machine's peaks."""

from bench.report import wording
from bench.report.roofline_parts import PARTS, GpuTrial, PeakTrial, Roofline, RooflineRow
from bench.report.table import Cell, Table, row, without_empty_columns

NAMES = {"top_k": "top-k", "other": "other (host)"}


def bound_table(roofline: Roofline) -> Table:
    """What each call has to do at least, how long that takes at the peaks, and how long it took."""
    rows = [
        row(
            each.candidate,
            wording.load(each.load),
            str(each.batch),
            wording.significant(each.time_ms),
            wording.count(each.flops),
            wording.ABSENT if each.bytes is None else wording.size(round(each.bytes)),
            wording.significant(each.intensity),
            wording.significant(each.compute_ms),
            wording.significant(each.bandwidth_ms),
            each.bound_by or wording.ABSENT,
            wording.ABSENT if each.share_of_bound is None else f"{each.share_of_bound:.0%}",
            wording.ABSENT if each.share_on_device is None else f"{each.share_on_device:.0%}",
            each.precision or wording.ABSENT,
        )
        for each in roofline.rows
        if each.flops is not None
    ]
    note = (
        "FLOPs and bytes: the least for histories without padding. At the peak: FLOPs at the best matrix "
        "product. From memory: bytes at the best bandwidth. Bound reached: the longer of both / time; more "
        "than 100% where weights stay in caches."
    )
    header = (
        "candidate", "load", "batch", "time ms", "FLOPs", "bytes", "FLOPs / byte", "at the peak ms",
        "from memory ms", "bound by", "bound reached", "between events", "peak of",
    )  # fmt: skip
    return without_empty_columns(Table("Against the machine", note, header, rows), wording.ABSENT)


def split_table(roofline: Roofline) -> Table:
    """Shares of a call's time by part."""
    rows = [_split(each) for each in roofline.rows if each.split_by is not None]
    note = (
        "Embedding: all before the first block. Head: final norm and projection. Scoring: the product with "
        "the item table. Other: the host, and what no part accounts for. Products: matrix products in the "
        "blocks, and their rate as a share of the best that any library reaches with weights of the same "
        "shapes and the rows of the largest call; with fewer rows that peak may be out of reach."
    )
    header = (
        "candidate", "load", "batch", *(NAMES.get(name, name) for name in PARTS), "products",
        "GFLOP/s of these", "of their peak",
    )  # fmt: skip
    return without_empty_columns(Table("Split of the time", note, header, rows), wording.ABSENT)


def _split(each: RooflineRow) -> tuple[Cell, ...]:
    shares = {part.part: part.share for part in each.parts if part.share is not None}
    products = each.products
    return row(
        each.candidate,
        wording.load(each.load),
        str(each.batch),
        *(f"{shares[name]:.0%}" if name in shares else wording.ABSENT for name in PARTS),
        wording.ABSENT if products is None else f"{products.share:.0%}",
        wording.ABSENT if products is None else wording.significant(products.flops_per_second / 1e9),
        wording.ABSENT
        if products is None or products.share_of_peak is None
        else f"{products.share_of_peak:.0%}",
    )


def machine_table(roofline: Roofline) -> Table:
    """Every way to reach a peak, the best one of each kind first."""
    machine = roofline.machine
    trials = sorted(machine.trials, key=lambda trial: (trial.what, -trial.best))
    note = (
        f"With {wording.threads(machine.threads)}, fp32, measured before the candidates and after each. "
        f"Memory: {wording.size(machine.buffer_bytes)} that are read"
    )
    if machine.cache_bytes is not None:
        note += f", with {wording.size(machine.cache_bytes)} of last cache"
    note += ". A median far below the best says that the machine was shared."
    header = ("peak", "library", "how", "m x k x n", "best", "median", "lowest", "samples")
    rows = [
        row(
            "memory" if each.what == "bandwidth" else "products",
            each.library,
            each.how,
            wording.ABSENT if each.shape is None else " x ".join(map(str, each.shape)),
            *(_rate(each, value) for value in (each.best, each.median, each.lowest)),
            str(each.samples),
        )
        for each in trials
    ]
    return Table("The machine at its best", note, header, rows)


def _rate(trial: PeakTrial | GpuTrial, value: float) -> str:
    unit = "GB/s" if trial.what == "bandwidth" else "GFLOP/s"
    return f"{wording.significant(value / 1e9)} {unit}"


def gpu_table(roofline: Roofline) -> Table:
    """Every way to reach a peak of the GPU, by precision, the best one of each first."""
    header = ("peak", "precision", "how", "m x k x n", "best", "median", "lowest", "samples")
    gpu = roofline.gpu
    if gpu is None:
        return Table("The GPU at its best", "", header, [])
    note = (
        f"{gpu.name or gpu.device}, by CUDA events, before the candidates and after each that ran on it. "
        f"fp32 is without TF32. Memory: {wording.size(gpu.buffer_bytes)} that are moved. Each part of a call "
        "is held against the peak of the precision that its products compute in."
    )
    trials = sorted(gpu.trials, key=lambda trial: (trial.what, trial.precision, -trial.best))
    rows = [
        row(
            "memory" if each.what == "bandwidth" else "products",
            each.precision if each.what == "gemm" else wording.ABSENT,
            each.how,
            wording.ABSENT if each.shape is None else " x ".join(map(str, each.shape)),
            *(_rate(each, value) for value in (each.best, each.median, each.lowest)),
            str(each.samples),
        )
        for each in trials
    ]
    return without_empty_columns(Table("The GPU at its best", note, header, rows), wording.ABSENT)


def missing_lines(roofline: Roofline) -> list[str]:
    """What is not known of whom, and why."""
    return [f"{name}: {text}." for name, text in roofline.missing.items()]
