"""Swap the catalogue of an artifact for a new version of it; the body stays as it is, file and digest.

A version is a folder of its own, complete and proved before anything points to it; the manifest, replaced in
one step, says which is in use. Whoever has the artifact open keeps the version that it opened. Older versions
stay and can be put back. One refresh at a time holds an artifact; readers are never kept out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import polars as pl
from numpy.typing import NDArray

from export.ann import AnnConfig
from export.artifact import CANONICAL_FILE, named_files, open_artifact, seal, write_golden
from export.body import item_table
from export.catalogue import ROWS_AT_ONCE, catalogue_name, check_ids, write_catalogue
from export.engines import refreshed_entry
from export.entries import half_entry, split_entry
from export.onnx import save_onnx
from export.proof import prove_rows, prove_variants
from export.recorded_table import record_again
from export.runtime import ArtifactError, FewBits, Float32, catalogue_files
from export.variants import CANONICAL, COMPILED, ENGINE, HALF, SPLIT
from export.versions import held, highest_version, publish, staged, versions
from recommender.data.prepare import catalogue_digest, default_cache
from recommender.errors import GateError, InputError, StageError, is_disk_full
from recommender.files import read_json, write_json
from recommender.quantization_scheme import TableBits

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Refreshed:
    """What a refresh came to."""

    version: int
    items: int
    changed: int  # items that were there and have another vector now
    added: int
    withdrawn: int


class Given(NamedTuple):
    """What a catalogue is made from."""

    ids: pl.Series
    vectors: Float32  # [n, D] in the order of the ids
    source: str


class Merged(NamedTuple):
    """The new catalogue in the order of its rows."""

    items: pl.DataFrame  # item_id and texts
    places: Int64  # [n] which of the given vectors is whose
    old_rows: Int64  # [n] rows in the present catalogue, 0 for new items


def refresh_items(
    folder: Path, items: pl.DataFrame, vectors: Float32, *, withdraw_missing: bool = False, source: str = ""
) -> Refreshed:
    """Make these items and vectors the catalogue of an artifact.

    items: `item_id` and perhaps `title` and further text, in the order of vectors float32 [n, D]; a column
    `row` is not read. An item of the present catalogue that is not among them is withdrawn with
    `withdraw_missing`, else that is an error. Items that stay keep their order and, where no text is given
    for them, their text; new ones follow.

    Raises InputError for a broken artifact, vectors of another width, count or with NaN, ids that are there
    twice or missing, too few items for the lists; GateError where a graph then ranks otherwise than the
    vectors do (`export.proof`); StageError while another refresh holds the artifact, or when the disk is
    full. Nothing changes unless everything has passed.
    """
    with held(folder):
        opened, vectors = open_artifact(folder, threads=1), np.asarray(vectors, dtype=np.float32)
        manifest = opened.manifest
        _check(folder, manifest, items, vectors)
        present = pl.read_parquet(folder / manifest["catalogue"]["folder"] / "items.parquet")
        merged = _merge(present.sort("row"), items, withdraw_missing=withdraw_missing, where=source)
        kept = int((merged.old_rows > 0).sum())
        told = Refreshed(
            version=1 + highest_version(folder, manifest),
            items=len(merged.items),
            changed=_changed(opened.table, vectors, merged),
            added=len(merged.items) - kept,
            withdrawn=len(present) - kept,
        )
        given = Given(items["item_id"].cast(pl.String), vectors, source)
        _make(folder, manifest, told, merged, given)
        return told


def restore(folder: Path, version: int) -> None:
    """Put an older (or newer) version of the catalogue back into use.

    Raises InputError when there is no such version or it is broken, StageError while a refresh holds the
    artifact.
    """
    with held(folder):
        known = versions(folder)
        if version not in known:
            raise InputError(
                f"there is no version {version} of the catalogue (there are: {', '.join(map(str, known))})",
                where=str(folder),
            )
        manifest = open_artifact(folder, threads=1, version=version).manifest  # every digest is compared
        if manifest["catalogue"]["folder"] != catalogue_name(version):
            raise InputError(
                f"the manifest in {catalogue_name(version)} is that of {manifest['catalogue']['folder']}",
                where=str(folder),
            )
        highest = highest_version(folder, read_json(folder / "manifest.json"))
        catalogue = {**manifest["catalogue"], "highest_version": highest}
        write_json(folder / "manifest.json", manifest | {"catalogue": catalogue})


def _check(folder: Path, manifest: Mapping[str, Any], items: pl.DataFrame, vectors: Float32) -> None:
    width, limit, where = manifest["catalogue"]["width"], manifest["variants"][0]["top_k"], "item vectors"
    names = {entry["name"] for entry in manifest["variants"]}
    if compiled := [name for name in COMPILED if name in names]:
        raise InputError(
            f"its variants {', '.join(compiled)} hold the item table within compiled code, which takes the "
            "model to be made anew",
            where=str(folder),
            fix="export the artifact again, or once without them, and refresh that one",
        )
    if unknown := names - {CANONICAL, *SPLIT, *HALF, *ENGINE}:
        raise InputError(
            f"its variants {', '.join(sorted(unknown))} are unknown to this recpress",
            where=str(folder),
            fix="use the recpress that exported it (manifest.json names its version)",
        )
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise InputError(
            f"the vectors are {' x '.join(map(str, vectors.shape))}, but the body reads vectors of {width} "
            "numbers",
            where=where,
            fix="give vectors of the model that this artifact was exported from",
        )
    if len(vectors) != len(items):
        raise InputError(f"{len(vectors)} vectors for {len(items)} items", where=where)
    if len(items) < limit:
        raise InputError(
            f"{len(items)} items are fewer than the {limit} that a list may hold", where=where,
            fix="give more items, or export the artifact again with a smaller top_k",
        )  # fmt: skip


def _merge(present: pl.DataFrame, given: pl.DataFrame, *, withdraw_missing: bool, where: str) -> Merged:
    """Which items the new catalogue holds in which order, and their texts.

    Ids are matched in tables of their own and texts carry whose they are in their names, so that no column
    that somebody gave can stand in for another.
    """
    given = given.select(pl.col("item_id").cast(pl.String), pl.exclude("item_id", "row"))
    check_ids(given["item_id"])
    rows, places = present.select("item_id", "row"), given.select("item_id").with_row_index("place")
    _check_missing(rows.join(places, on="item_id", how="anti"), len(present), withdraw_missing, where)
    kept = rows.join(places, on="item_id", how="inner", maintain_order="left")
    new = places.join(rows, on="item_id", how="anti", maintain_order="left")
    order = pl.concat([kept, new], how="diagonal")
    texts = order.select("item_id")
    for whose, frame in (("given", given), ("present", present)):
        named = frame.select(pl.all().name.prefix(f"{whose} "))
        texts = texts.join(
            named, left_on="item_id", right_on=f"{whose} item_id", how="left", maintain_order="left"
        )
    names = dict.fromkeys([*present.drop("item_id", "row").columns, *given.drop("item_id").columns])
    have = set(texts.columns)
    merged = [
        pl.coalesce([each for each in (f"given {name}", f"present {name}") if each in have]).alias(name)
        for name in names
    ]
    items = texts.select("item_id", *merged)
    old_rows = order["row"].fill_null(0).to_numpy().astype(np.int64)
    return Merged(items, order["place"].to_numpy().astype(np.int64), old_rows)


def _check_missing(missing: pl.DataFrame, present: int, withdraw_missing: bool, where: str) -> None:
    if len(missing) and not withdraw_missing:
        shown = ", ".join(map(repr, missing["item_id"][:5]))
        raise InputError(
            f"{len(missing):,} of the {present:,} items have no new vector: {shown}"
            f"{', ...' if len(missing) > 5 else ''}",
            where=where or "item vectors",
            fix="give a vector for each of them, or say --withdraw-missing to take them out of the catalogue",
        )


def _changed(table: "Float32 | FewBits", vectors: Float32, merged: Merged) -> int:
    """How many of the items that stay have another vector than before."""
    (kept,) = np.nonzero(merged.old_rows)
    changed = 0
    for start in range(0, len(kept), ROWS_AT_ONCE):
        part = kept[start : start + ROWS_AT_ONCE]
        changed += int((table[merged.old_rows[part]] != vectors[merged.places[part]]).any(axis=1).sum())
    return changed


def _make(folder: Path, old: Mapping[str, Any], told: Refreshed, merged: Merged, given: Given) -> None:
    """Make a version in an artifact of its own, prove it there, and only then move it to its place."""
    used = old["catalogue"]["folder"]
    shared = [name for name in named_files(old) if not name.startswith(f"{used}/")]
    with staged(folder, told.version, shared) as stage:
        try:
            _write_version(stage, folder / used, old, told, merged, given)
            write_json(stage / "manifest.json", prove_variants(stage))
            write_golden(stage)
            if "item_table.npy" not in catalogue_files(old):
                (stage / catalogue_name(told.version) / "item_table.npy").unlink()
        except ArtifactError as error:
            raise GateError(
                f"a graph does not answer with these vectors: {str(error).replace(str(stage), str(folder))}",
                where=given.source or "item vectors",
                fix="give vectors of the model that this artifact was exported from",
            ) from error
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise StageError(
                f"the disk is full ({error}); the catalogue in use is untouched",
                where=str(folder),
                fix="free some space, for example delete versions that nobody needs, and give the same "
                "command again",
            ) from error
        publish(stage, folder, told.version)


def _write_version(
    stage: Path, used: Path, old: Mapping[str, Any], told: Refreshed, merged: Merged, given: Given
) -> None:
    """Write the catalogue of a version, all that is made of it, and its manifest."""
    name = catalogue_name(told.version)
    made = stage / name
    write_catalogue(made, merged.items, given.vectors, merged.places)
    prove_rows(made, given.ids, given.vectors)
    table: Float32 = np.load(made / "item_table.npy", mmap_mode="r").view(np.ndarray)[: told.items + 1]
    graphs: tuple[str, ...] = ()
    if CANONICAL in [entry["name"] for entry in old["variants"]]:
        graphs = _swap_table(used / CANONICAL_FILE, made / CANONICAL_FILE, table)
    for own in [entry["table"] for entry in old["variants"] if "table" in entry]:
        paths = (used.parent / own["numbers"], used.parent / own["scales"])
        record_again(made, own["bits"], FewBits(*paths, table.shape[1]), merged.old_rows)
    manifest: dict[str, Any] = {
        **old,
        "catalogue": {
            "version": told.version, "highest_version": told.version, "folder": name, "items": told.items,
            "width": table.shape[1], "source": given.source,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "data": {
            **old["data"], "items": told.items, "catalogue_digest": catalogue_digest(merged.items["item_id"])
        },
    }  # fmt: skip
    manifest["variants"] = _entries(old, manifest, made, graphs, used)
    seal(stage, manifest)


def _entries(
    old: Mapping[str, Any], new: Mapping[str, Any], made: Path, graphs: Sequence[str], used: Path
) -> list[dict[str, Any]]:
    """The entries of all variants for the new version, with their heads written."""
    entries: list[dict[str, Any]] = []
    for entry in old["variants"]:
        name = entry["name"]
        if name == CANONICAL:
            fresh = {"graph": f"{made.name}/{graphs[0]}", "files": [f"{made.name}/{n}" for n in graphs]}
        elif name in HALF:
            fresh = half_entry(name, new, made / graphs[0], made)
        elif name in ENGINE:
            fresh = refreshed_entry(entry, new, used.parent, made, default_cache())
        else:
            ann = AnnConfig.model_validate(entry["ann"]["asked"]) if "index" in entry else AnnConfig()
            bits: TableBits = entry["table"]["bits"] if "table" in entry else "fp32"
            fresh = split_entry(name, new, entry["body"], made, ann, bits)
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
