"""Checkpoints and artifacts as far as the bench reads them, and a log small enough to count by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recommender.data.prepared import Prepared
from recommender.files import write_json
from recommender.scoring import ScorerRef
from recommender.stage import Bound

OPENER = "tests.bench.scorers:open_fixed"

HISTORIES = [
    [1, 2, 3, 4],  # trained on 1 2; valid 3; test 4
    [1, 2, 4, 3],
    [2, 1, 3, 5],
    [1, 3, 2, 6],
    [3, 1, 2, 4, 5, 6],
    [1, 2, 3, 4, 5, 7],
]
"""By user. In training: 1 six times, 2 five, 3 three, 4 two, 5 never, 6 never, 7 never, 8 never."""

HOSTILE = '<script>alert("1")</script> | **bold** [x](javascript:alert(1)) `code` \u202e'
TITLES = ["Anchor", "Bell", HOSTILE, "Drum & Co", None, "Fiddle", "Gong", "Harp"]


def tiny_log(folder: Path, *, histories: Sequence[Sequence[int]] = HISTORIES, n_items: int = 8) -> Prepared:
    """The log as prepared data; titles hold what may not become markup."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [len(history) for history in histories]
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths]).astype(np.int64))
    np.save(folder / "items.npy", np.concatenate([*histories]).astype(np.int32))
    titles = [TITLES[i] if i < len(TITLES) else f"Title {i}" for i in range(n_items)]
    rows = list(range(1, n_items + 1))
    frame = pl.DataFrame({"row": rows, "item_id": [f"id{row}" for row in rows], "title": titles})
    frame.write_parquet(folder / "items.parquet")
    meta = {"name": "tiny", "digest": "d", "catalogue_digest": "c", "items": n_items}
    write_json(folder / "meta.json", meta)
    return Prepared(folder)


def checkpoint(
    folder: Path, name: str, order: Sequence[int], *, of: str | None = None, trained: bool = True,
    parameters: int = 1000,
) -> Bound:  # fmt: skip
    """A checkpoint folder (as far as the bench reads it) and the stage that made it."""
    path = folder / "checkpoint"
    config = {
        "schema": 1, "model": {"kind": "popularity"}, "n_items": 8, "max_length": 4,
        "data": {"name": "tiny", "catalogue_digest": "c"}, "blocks": {}, "parameters": parameters,
        "body_parameters": parameters // 2, "size_bytes": parameters * 4, "about": {},
    }  # fmt: skip
    write_json(path / "config.json", config)
    write_json(path / "order.json", {"order": list(order), "exact": True})
    metrics = {"epochs": 3, "seconds": 6.0, "seconds_per_epoch": 2.0} if trained else {}
    write_json(
        folder / "stage.json", {"config": {"of": of} if of else {}, "seconds": 9.0, "metrics": metrics}
    )
    return Bound(name, "checkpoint", path, folder, (ScorerRef(name, "checkpoint", "torch", path, OPENER),))


def artifact(
    folder: Path, name: str, order: Sequence[int], *, of: str, variants: Sequence[str] = ("fp32",)
) -> Bound:
    """An artifact folder (as far as the bench reads it) and the stage that made it."""
    path = folder / "artifact"
    manifest = {
        "schema_version": 1, "default_variant": variants[0],
        "files": {f"{variant}.onnx": {"sha256": "", "size_bytes": 2000} for variant in variants},
        "variants": [
            {"name": each, "files": [f"{each}.onnx"], "precision": each, "top_k": 9} for each in variants
        ],
    }  # fmt: skip
    write_json(path / "manifest.json", manifest)
    write_json(path / "order.json", {"order": list(order), "exact": False})
    write_json(folder / "stage.json", {"config": {"of": of}, "seconds": 1.0, "metrics": {"margin": 0.1}})
    refs = [
        ScorerRef(f"{name}/{variant}", "artifact", "onnxruntime", path, OPENER, {"variant": variant})
        for variant in variants
    ]
    return Bound(name, "artifact", path, folder, tuple(refs))
