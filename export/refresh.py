"""Swap the catalogue of an artifact for a new version of it; the body stays as it is, file and digest.

A version is a folder of its own, complete before anything points to it; the manifest, replaced in one step,
says which is in use. Whoever has the artifact open keeps the version that it opened. Older versions stay and
can be put back.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import polars as pl

from export.ann import AnnConfig, gate_recall, made_up, measure_recall
from export.artifact import CANONICAL_FILE, golden_requests, open_artifact, seal, write_golden
from export.body import item_table
from export.catalogue import catalogue_name, write_catalogue
from export.entries import half_entry, split_entry
from export.half_check import gate_agreement, open_rounded
from export.onnx import save_onnx
from export.runtime import Artifact, Float32
from export.variants import CANONICAL, HALF, is_lossy
from export.verify import replay
from recommender.data.prepare import catalogue_digest
from recommender.errors import InputError
from recommender.files import complete_folder, read_json, write_json


@dataclass(frozen=True)
class Refreshed:
    """What a refresh came to."""

    version: int
    items: int
    changed: int  # items that were there and have another vector now
    added: int
    withdrawn: int


def refresh_items(
    folder: Path, items: pl.DataFrame, vectors: Float32, *, withdraw_missing: bool = False, source: str = ""
) -> Refreshed:
    """Make these items and vectors the catalogue of an artifact.

    items: `item_id` and perhaps `title` and further text, in the order of vectors float32 [n, D]. An item of
    the present catalogue that is not among them is withdrawn with `withdraw_missing`, else that is an error.
    Items that stay keep their order and, where no text is given for them, their text; new ones follow.

    Raises InputError for a broken artifact, vectors of another width, count or with NaN, ids that are there
    twice or missing, too few items for the lists, and GateError where a graph then answers differently from
    the canonical one. Nothing changes unless everything has passed.
    """
    artifact = open_artifact(folder, threads=1)
    _check(artifact, items, vectors)
    present = pl.read_parquet(folder / artifact.manifest["catalogue"]["folder"] / "items.parquet")
    merged, order = _merge(present.sort("row"), items, withdraw_missing=withdraw_missing, where=source)
    table = np.concatenate((np.zeros((1, vectors.shape[1]), np.float32), vectors[order]))
    kept = merged["item_id"].is_in(present["item_id"].implode())
    told = Refreshed(
        version=1 + max(versions(folder)),
        items=len(merged),
        changed=_changed(artifact, merged["item_id"].filter(kept).to_list(), table[1:][kept.to_numpy()]),
        added=int((~kept).sum()),
        withdrawn=len(present) - int(kept.sum()),
    )
    _write_version(artifact, told, merged, table, source)
    return told


def restore(folder: Path, version: int) -> None:
    """Put an older (or newer) version of the catalogue back into use. Raises InputError when it is broken."""
    known = versions(folder)
    if version not in known:
        raise InputError(
            f"there is no version {version} of the catalogue (there are: {', '.join(map(str, known))})",
            where=str(folder),
        )
    found = open_artifact(folder, threads=1, version=version)  # every digest is compared
    write_json(folder / "manifest.json", found.manifest)


def versions(folder: Path) -> list[int]:
    """Versions of the catalogue that an artifact holds, ascending. Raises InputError when there is none."""
    found = sorted(
        int(path.parent.name.rpartition("-")[2]) for path in folder.glob("catalogue-[0-9]*/manifest.json")
    )
    if not found:
        raise InputError("holds no catalogue: is it an artifact?", where=str(folder))
    return found


def _check(artifact: Artifact, items: pl.DataFrame, vectors: Float32) -> None:
    width, where = artifact.table.shape[1], "item vectors"
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise InputError(
            f"the vectors are {' x '.join(map(str, vectors.shape))}, but the body reads vectors of {width} "
            "numbers",
            where=where,
            fix="give vectors of the model that this artifact was exported from",
        )
    if len(vectors) != len(items):
        raise InputError(f"{len(vectors)} vectors for {len(items)} items", where=where)
    if len(items) < artifact.limit:
        raise InputError(
            f"{len(items)} items are fewer than the {artifact.limit} that a list may hold", where=where,
            fix="give more items, or export the artifact again with a smaller top_k",
        )  # fmt: skip


def _merge(
    present: pl.DataFrame, given: pl.DataFrame, *, withdraw_missing: bool, where: str
) -> tuple[pl.DataFrame, "np.ndarray[Any, np.dtype[np.int64]]"]:
    """The new catalogue (without rows), and for each of its items the place of its vector."""
    given = given.with_columns(pl.col("item_id").cast(pl.String)).with_row_index("place")
    texts = [name for name in given.columns if name not in ("item_id", "place", "row")]
    missing = present.join(given, on="item_id", how="anti")
    if len(missing) and not withdraw_missing:
        shown = ", ".join(map(repr, missing["item_id"][:5]))
        raise InputError(
            f"{len(missing):,} of the {len(present):,} items have no new vector: {shown}"
            f"{', ...' if len(missing) > 5 else ''}",
            where=where or "item vectors",
            fix="give a vector for each of them, or say --withdraw-missing to take them out of the catalogue",
        )
    old = present.drop("row").join(given, on="item_id", how="inner", suffix=" (new)", maintain_order="left")
    for name in texts:
        if name in present.columns:
            old = old.with_columns(pl.coalesce(f"{name} (new)", name).alias(name)).drop(f"{name} (new)")
    new = given.join(present, on="item_id", how="anti", maintain_order="left")
    merged = pl.concat([old, new.drop("row", strict=False)], how="diagonal_relaxed")
    return merged.drop("place"), merged["place"].to_numpy().astype(np.int64)


def _changed(artifact: Artifact, ids: Sequence[str], vectors: Float32) -> int:
    """How many of the items have another vector than before."""
    rows = np.array([artifact.rows[item_id] for item_id in ids], np.int64)
    return int((artifact.table[rows] != vectors).any(axis=1).sum()) if len(rows) else 0


def _write_version(
    artifact: Artifact, told: Refreshed, items: pl.DataFrame, table: Float32, source: str
) -> None:
    """Write the folder of a version beside the others, prove it, and only then point the manifest to it."""
    folder, name = artifact.folder, catalogue_name(told.version)
    canonical = folder / artifact.manifest["catalogue"]["folder"] / CANONICAL_FILE
    made = folder / name
    try:
        with complete_folder(made) as temporary:
            write_catalogue(temporary, items, table)
            graphs = _swap_table(canonical, temporary / CANONICAL_FILE, table)
        manifest: dict[str, Any] = {
            **artifact.manifest,
            "catalogue": {
                "version": told.version, "folder": name, "items": told.items, "width": table.shape[1],
                "source": source, "created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            "data": {**artifact.manifest["data"], "catalogue_digest": catalogue_digest(items["item_id"])},
        }  # fmt: skip
        manifest["data"]["items"] = told.items
        manifest["variants"] = _entries(artifact.manifest, manifest, made, graphs)
        seal(folder, manifest, publish=False)
        _prove(folder, told.version)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    write_json(folder / "manifest.json", read_json(made / "manifest.json"))


def _entries(
    old: Mapping[str, Any], new: Mapping[str, Any], made: Path, graphs: Sequence[str]
) -> list[dict[str, Any]]:
    """The entries of all variants for the new version, with their heads written."""
    first, *others = old["variants"]
    entries = [{**first, "graph": f"{made.name}/{graphs[0]}", "files": [f"{made.name}/{n}" for n in graphs]}]
    for entry in others:
        if entry["name"] in HALF:
            told = {**new, "variants": entries}
            entries.append({**entry, **half_entry(entry["name"], told, made / graphs[0], made)})
            continue
        ann = AnnConfig.model_validate(entry["ann"]["asked"]) if "index" in entry else AnnConfig()
        fresh = split_entry(entry["name"], {**new, "variants": entries}, entry["body"], made, ann)
        entries.append({**entry, **fresh})
    return entries


def _swap_table(old: Path, new: Path, table: Float32) -> tuple[str, ...]:
    """The canonical graph with another item table; the files written."""
    model = ir.load(old)
    stored = item_table(model)
    stored.const_value = ir.tensor(table, name=stored.name)
    stored.shape = ir.Shape(table.shape)
    for node in model.graph:  # shapes that were inferred for the old number of items
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return save_onnx(model, new)


def _prove(folder: Path, version: int) -> None:
    """Every variant of a version has to answer made-up requests as the canonical graph does.

    One that ranks otherwise cannot; of an approximate index the recall is measured instead, of half precision
    how far its lists agree. The answers of the default variant become the version's golden requests. Raises
    GateError.
    """
    canonical = Artifact(folder, variant=CANONICAL, threads=1, version=version)
    expected = golden_requests(canonical, canonical.limit)
    for entry in canonical.manifest["variants"]:
        if entry["name"] in HALF:
            with TemporaryDirectory() as scratch:
                opened = open_rounded(folder, entry, Path(scratch), threads=1, version=version)
                entry["agreement"] = measure_recall(opened, made_up(opened), histories="made-up histories")
            gate_agreement(entry["agreement"], entry)
            continue
        if is_lossy(entry["name"]) and "index" not in entry:  # its head is that of another variant
            continue
        opened = Artifact(folder, variant=entry["name"], threads=1, version=version, verify=False)
        if "index" in entry:
            entry["recall"] = measure_recall(opened, made_up(opened), histories="made-up histories")
            gate_recall(entry["recall"], entry)
        else:
            replay(opened, expected)
    seal(folder, canonical.manifest, publish=False)
    write_golden(folder, version=version, publish=False)
