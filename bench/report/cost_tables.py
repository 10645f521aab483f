"""Tables of what candidates are and cost: size, memory, energy, money, training."""

from bench.report import wording
from bench.report.parts import Cost
from bench.report.schema import Report
from bench.report.table import Cell, Table, by_reference, row, without_empty_columns


def candidate_table(report: Report) -> Table:
    """What each candidate is and how large."""
    header = (
        "made from", "kind", "runtime", "variant", "precision", "device", "threads", "parameters", "body",
        "zeros", "size", "peak memory", "on the GPU",
    )  # fmt: skip
    rows = [
        row(
            each.name,
            each.of or wording.ABSENT,
            each.kind,
            each.runtime,
            each.variant or wording.ABSENT,
            each.precision or wording.ABSENT,
            each.device,
            str(each.threads),
            wording.count(each.parameters),
            wording.count(each.body_parameters),
            wording.ABSENT
            if each.zeros is None
            else f"{each.zeros.of_body_matrices:.0%} ({each.zeros.pattern})",
            wording.size(each.size_bytes),
            wording.size(each.peak_memory_bytes),
            wording.size(each.peak_device_bytes),
        )
        for each in report.candidates
    ]
    note = "Body: blocks, final norm and projections, without item tables, word embeddings and heads."
    if any(each.zeros is not None for each in report.candidates):
        note += " Zeros: share of the weights in the matrices of the body's blocks that were pruned to zero."
    if any(each.peak_memory_bytes is not None for each in report.candidates):
        note += " Peak memory: largest resident size of the candidate's own process, libraries included."
    return without_empty_columns(Table("Candidates", note, ("candidate", *header), rows), wording.ABSENT)


def smaller_tables(report: Report) -> list[Table]:
    """Size, parameters and peak memory as ratios, one table per reference."""
    memory = {each.name: each.peak_memory_bytes for each in report.candidates}
    found = []
    for against, group in by_reference(report):
        rows = [
            row(
                each.candidate,
                wording.times(each.size_ratio),
                wording.times(each.parameter_ratio),
                wording.times(wording.quotient(memory.get(each.candidate), memory.get(against))),
            )
            for each in group
        ]
        header = ("candidate", "size", "parameters", "peak memory")
        table = Table(f"Size, against {against}", "Candidate / reference.", header, rows)
        found.append(without_empty_columns(table, wording.ABSENT))
    return found


def training_table(report: Report) -> list[Table]:
    """What training cost, of those that were trained; epochs against that of the reference."""
    trained = {each.name: each.train for each in report.candidates if each.train is not None}
    references = {each.candidate: each.against for each in report.comparisons}
    rows = []
    for name, train in trained.items():
        base = trained.get(references.get(name, ""))
        faster = wording.quotient(base.seconds_per_epoch if base else None, train.seconds_per_epoch)
        rows.append(
            row(
                name,
                wording.ABSENT if train.epochs is None else f"{train.epochs:g}",
                wording.duration(train.seconds),
                wording.duration(train.seconds_per_epoch),
                wording.times(faster),
            )
        )
    note = (
        "Of the stage that made it, mean over seeds; the last column: an epoch against one of the reference."
    )
    header = ("candidate", "epochs", "time", "per epoch", "speed of an epoch")
    table = without_empty_columns(Table("Training", note, header, rows), wording.ABSENT)
    return [table._replace(note=note if header[-1] in table.header else note.split(";")[0] + ".")]


def energy_table(report: Report) -> Table:
    """Energy that a counter of the machine has seen."""
    rows = [
        row(
            each.name,
            wording.load(entry.load),
            str(entry.batch),
            entry.source.upper(),
            wording.significant(entry.watts),
            wording.significant(entry.joules_per_user),
            wording.significant(entry.users_per_watt_hour),
        )
        for each in report.candidates
        for entry in each.energy or []
    ]
    return Table(
        "Energy",
        "RAPL counts whole processor packages, NVML whole GPUs; the rest of the machine is not in it.",
        ("candidate", "load", "batch", "counter", "watts", "joules / user", "users / Wh"),
        rows,
    )


def cost_table(cost: Cost) -> Table:
    """What a currency unit and a watt-hour buy."""
    rows: list[tuple[Cell, ...]] = [
        row(
            each.candidate,
            wording.load(each.load),
            str(each.batch),
            wording.significant(each.users_per_second),
            wording.count(each.users_per_currency_unit),
            wording.count(each.users_per_watt_hour),
            each.power or wording.ABSENT,
        )
        for each in cost.rows
    ]
    given = []
    if cost.price_per_hour is not None:
        given.append(f"{wording.significant(cost.price_per_hour)} {cost.currency} an hour")
    if cost.watts is not None:
        given.append(f"{wording.significant(cost.watts)} W where power was not measured")
    note = f"At {' and '.join(given)}." if given else ""
    header = (
        "candidate", "load", "batch", "users / s", f"users / {cost.currency}", "users / Wh", "power",
    )  # fmt: skip
    return without_empty_columns(Table("Cost card", note, header, rows), wording.ABSENT)
