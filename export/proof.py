"""Does a refreshed catalogue hold what was given, and does every variant rank it as it must?"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from export.ann import gate_recall, made_up, measure_recall
from export.catalogue import ROWS_AT_ONCE
from export.exact import agreements
from export.half_check import gate_agreement, open_rounded
from export.parity import NOTHING_FORBIDDEN, ParityConfig, out_of_bounds, ranking_bounds, summary
from export.recorded_table import prove_recorded
from export.runtime import Artifact, read_manifest
from export.variants import CANONICAL, ENGINE, HALF, is_lossy
from recommender.errors import GateError
from recommender.scoring import Float32

MADE_UP = "made-up histories"


def prove_rows(catalogue: Path, ids: pl.Series, vectors: Float32) -> None:
    """Raise GateError unless the row of each id in a written catalogue is its vector of [n, D], and no other
    id stands there."""
    given = pl.DataFrame({"item_id": ids}).with_row_index("place")
    stored = pl.read_parquet(catalogue / "items.parquet", columns=["row", "item_id"])
    matched = stored.join(given, on="item_id", how="inner")
    if not len(matched) == len(stored) == len(given):
        raise GateError(f"{len(matched)} of {len(given)} items were written", where=str(catalogue))
    rows, places = matched["row"].to_numpy(), matched["place"].to_numpy()
    table: Float32 = np.load(catalogue / "item_table.npy", mmap_mode="r")
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        wrong = np.flatnonzero((table[rows[part]] != vectors[places[part]]).any(axis=1))
        if len(wrong):
            item = matched["item_id"][start + int(wrong[0])]
            raise GateError(f"the vector of item {item!r} is not the one given", where=str(catalogue))


def prove_variants(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact that nobody uses yet, with what was measured of its variants.

    `item_table.npy` is there, also where no variant reads it.

    Those that have to rank like the model are held against the exact product of the table and the user
    vectors of the plain body, on made-up histories, with the bounds of the export stage; those whose body
    ranks otherwise (`int8-body`, ...) against the product with their own user vectors. Of an approximate
    index the recall is measured, of half precision, of engines and of item tables in few bits how far lists
    agree. Raises GateError where one does not hold.
    """
    first = Artifact(folder, variant=read_manifest(folder)["variants"][0]["name"], threads=1, verify=False)
    manifest, history, limits = first.manifest, made_up(first), ParityConfig()
    vectors = first.user_vectors(history)

    def held_against(opened: Artifact, *, own: bool = False) -> dict[str, float]:
        theirs = None if own else vectors
        return summary(agreements(opened, history, atol=limits.atol, vectors=theirs))

    found = {first.variant: held_against(first)}
    del first  # one graph with a whole table at a time
    for entry in manifest["variants"]:
        name = entry["name"]
        if name not in found and name not in (*HALF, *ENGINE) and "index" not in entry:
            opened = Artifact(folder, variant=name, threads=1, verify=False)
            found[name] = held_against(opened, own=is_lossy(name))
    gate_variants(found, limits, default=manifest["default_variant"], users=len(vectors))
    for entry in manifest["variants"]:
        _measure_lossy(folder, entry, folder / manifest["catalogue"]["folder"])
    return manifest


def gate_variants(
    found: Mapping[str, Mapping[str, float]], limits: ParityConfig, *, default: str, users: int
) -> None:
    """Raise GateError naming every variant that ranks otherwise, how far, and those that do not.

    `found`: variant -> `parity.summary` of it.
    """
    bounds = [*ranking_bounds(limits), NOTHING_FORBIDDEN]
    faults = {name: out_of_bounds(numbers, bounds) for name, numbers in found.items()}
    failed = [name for name in faults if faults[name]]
    if not failed:
        return
    fit = [name for name in faults if not faults[name]]
    told = [
        f"{name}{' (the default)' if name == default else ''}: top-10 overlap "
        f"{found[name]['top10_overlap_outside_margin']:.4f}; out of bounds: {', '.join(faults[name])}"
        for name in failed
    ]
    asked = ", ".join(name for name in fit if name != CANONICAL)
    raise GateError(
        f"these vectors are not ranked as their exact product ranks them by {'; by '.join(told)}",
        where=f"{users} {MADE_UP}",
        fix=f"{' and '.join(fit)} may serve them: export the artifact again with variants: [{asked}], and "
        "refresh that one"
        if fit
        else "look whether the vectors are of the model that this artifact was exported from",
    )


def _measure_lossy(folder: Path, entry: dict[str, Any], catalogue: Path) -> None:
    """Note in the entry of a variant what its lists come to; raises GateError where that is too little."""
    if entry["name"] in HALF:
        with TemporaryDirectory() as scratch:
            opened = open_rounded(folder, entry, Path(scratch), threads=1)
            entry["agreement"] = measure_recall(opened, made_up(opened), histories=MADE_UP)
        gate_agreement(entry["agreement"], entry)
    elif entry["name"] in ENGINE:
        opened = Artifact(folder, variant=entry["name"], threads=1, verify=False)
        entry["agreement"] = measure_recall(opened, made_up(opened), histories=MADE_UP)
        gate_agreement(entry["agreement"], entry)
    elif "table" in entry:
        opened = Artifact(folder, variant=entry["name"], threads=1, verify=False)
        prove_recorded(catalogue, opened.n_items)
        given = np.load(catalogue / "item_table.npy", mmap_mode="r").view(np.ndarray)[: opened.n_items + 1]
        entry["agreement"] = measure_recall(opened, made_up(opened), histories=MADE_UP, table=given)
        gate_agreement(entry["agreement"], entry)
    elif "index" in entry:
        opened = Artifact(folder, variant=entry["name"], threads=1, verify=False)
        entry["recall"] = measure_recall(opened, made_up(opened), histories=MADE_UP)
        gate_recall(entry["recall"], entry)
