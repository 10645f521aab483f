"""An approximate index of the item vectors (faiss), and how many of the best items it finds.

The index only names candidates; the runtime scores them again in float32, so what comes back is scored
exactly, and an item can only be missed. It pays for single requests on catalogues of some ten thousand items
and more. For users in batches a matrix product is faster than the brute-force indexes of faiss.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from export.exact import agreements
from export.parity import summary
from recommender.data.config import Section
from recommender.errors import GateError, InputError, require
from recommender.scoring import Float32, HistoryArrays

if TYPE_CHECKING:
    from pathlib import Path

    from export.runtime import Artifact

INDEX = "ann.faiss"
TRAINED_ON = 262_144  # vectors, drawn
ADDED_AT_ONCE = 65_536
SMALLEST_QUANTIZED = 1_000  # items from which on products are quantized
LARGE = 200_000  # items from which on more candidates are needed
ROUNDING = 1e-6  # per unit of a user's largest score: items that far apart are tied in float32
MADE_UP_USERS = 256


class AnnConfig(Section):
    """The approximate index of the variant `ann`, and what it has to find."""

    index: str | None = Field(
        None,
        description="faiss factory string, e.g. HNSW32_SQ8; null: PQ{width / 2}x4fs, below 1,000 items SQ8",
    )
    search: str | None = Field(
        None, description="search parameters of faiss, kept in the index, e.g. efSearch=128 or nprobe=32"
    )
    candidates: int | None = Field(
        None, ge=1, description="items that are scored exactly; null: 200, from 200,000 items on 400"
    )
    min_recall: float = Field(
        0.95,
        ge=0,
        le=1,
        description="share of the exact ten best that has to be found, else nothing is written",
    )


def default_index(n_items: int, width: int) -> str:
    """The index for so many items: 4 bits for every two numbers, or 8 for each where items are few."""
    return "SQ8" if n_items < SMALLEST_QUANTIZED else f"PQ{width // 2 if width % 2 == 0 else width}x4fs"


def write_index(folder: "Path", config: AnnConfig, *, n_items: int, top_k: int) -> dict[str, Any]:
    """Write `ann.faiss` beside the `item_table.npy` of a catalogue; what the manifest says of it.

    By inner product; place p holds row p + 1. One thread, so that two exports are equal byte for byte. Raises
    InputError where faiss is not installed, or cannot make such an index of these vectors.
    """
    faiss: Any = require("faiss", extra="ann", for_="the variant ann")
    table: Float32 = np.load(folder / "item_table.npy", mmap_mode="r")[1 : n_items + 1]
    form = config.index or default_index(n_items, table.shape[1])
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index = faiss.index_factory(table.shape[1], form, faiss.METRIC_INNER_PRODUCT)
        index.train(_drawn(table))
        for start in range(0, n_items, ADDED_AT_ONCE):
            index.add(np.ascontiguousarray(table[start : start + ADDED_AT_ONCE]))
        if config.search:
            faiss.ParameterSpace().set_index_parameters(index, config.search)
        faiss.write_index(index, str(folder / INDEX))
    except RuntimeError as error:  # what all exceptions of faiss become
        asked = form if config.search is None else f"{form} with {config.search}"
        raise InputError(
            f"faiss cannot make {asked} of {n_items:,} vectors of {table.shape[1]} numbers: {error}",
            where="export.ann",
            fix="see github.com/facebookresearch/faiss/wiki/The-index-factory, or leave ann.index out",
        ) from error
    finally:
        faiss.omp_set_num_threads(threads)
    candidates = config.candidates or (200 if n_items < LARGE else 400)
    return {
        "asked": config.model_dump(),
        "index": form,
        "candidates": min(max(candidates, 2 * top_k), n_items),
        "faiss": faiss.__version__,
    }


def _drawn(table: Float32) -> Float32:
    """Vectors to train on, in the order of their rows."""
    if len(table) <= TRAINED_ON:
        return np.ascontiguousarray(table)
    rows = np.random.default_rng(0).choice(len(table), TRAINED_ON, replace=False)
    return np.ascontiguousarray(table[np.sort(rows)])


def measure_recall(
    artifact: "Artifact", history: HistoryArrays, *, histories: str, table: Float32 | None = None
) -> dict[str, Any]:
    """The share of the exact ten best (by the same user vectors) that the lists of an artifact hold.

    An item whose score equals that of the tenth up to rounding counts as the tenth. `histories`: what they
    are, for people. `table` [n_items + 1, D]: exact item vectors; None: the variant's own. Raises GateError
    where a score leaves the range of float32.
    """
    found = summary(agreements(artifact, history, atol=ROUNDING, table=table))
    return {
        "recall": found["top10_overlap_outside_margin"],
        "depth": min(10, artifact.limit),
        "forbidden_items": found["forbidden_items"],
        "users": len(history.items),
        "histories": histories,
    }


def made_up(artifact: "Artifact", users: int = MADE_UP_USERS, seed: int = 0) -> HistoryArrays:
    """Histories of items drawn at random, 1 to `max_length` long; masked as the artifact masks."""
    rng = np.random.default_rng(seed)
    shape = (users, artifact.max_length)
    rows = rng.integers(1, artifact.n_items + 1, shape)
    rows[np.arange(shape[1])[None] < rng.integers(0, shape[1], users)[:, None]] = 0
    return HistoryArrays(rows, rows if artifact.manifest["mask_seen"] else None)


def gate_recall(found: dict[str, Any], entry: dict[str, Any]) -> None:
    """Raise GateError where the recall of a variant is too low (NaN is), or something masked came back."""
    lowest, ann = entry["ann"]["asked"]["min_recall"], entry["ann"]
    where = f"{entry['name']}, {found['users']} {found['histories']}"
    if not found["recall"] >= lowest:
        raise GateError(
            f"the index {ann['index']} finds {found['recall']:.4f} of the exact {found['depth']} best "
            f"(must be >= {lowest:g}) among its {ann['candidates']} candidates",
            where=where,
            fix="export with more candidates (ann.candidates), another index (ann.index, for example "
            "HNSW32_SQ8 with ann.search efSearch=128), or a lower ann.min_recall",
        )
    if found["forbidden_items"]:
        raise GateError(f"{found['forbidden_items']:g} items came back that were masked", where=where)
