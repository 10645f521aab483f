"""Small logs and contexts that tests share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recommender.data.config import DataConfig, EvaluationConfig
from recommender.data.prepared import Prepared
from recommender.files import digest_of, write_json
from recommender.stage import Context


def prepared_from(folder: Path, histories: Sequence[Sequence[int]], n_items: int) -> Prepared:
    """A prepared data set of given rows, written in the documented layout."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "items.npy", np.concatenate([np.asarray(h, dtype=np.int32) for h in histories]))
    names = [f"i{row}" for row in range(1, n_items + 1)]
    pl.DataFrame(
        {"row": range(1, n_items + 1), "item_id": names, "title": [f"Item {n}" for n in names]}
    ).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": [str(u) for u in range(len(histories))]}).write_parquet(folder / "users.parquet")
    meta = {
        "name": "tiny",
        "digest": digest_of([list(map(int, h)) for h in histories]),
        "catalogue_digest": digest_of(names),
        "users": len(histories),
        "items": n_items,
        "interactions": int(offsets[-1]),
    }
    write_json(folder / "meta.json", meta)
    return Prepared(folder)


def cyclic_histories(users: int, n_items: int, length: int, seed: int = 0) -> list[list[int]]:
    """Histories that walk through the items in a circle: the next row is always the last one plus 1."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, n_items, users), rng.integers(4, length + 1, users)
    return [[int((s + t) % n_items) + 1 for t in range(n)] for s, n in zip(starts, lengths, strict=True)]


def context_for(prepared: Prepared, folder: Path, *, max_length: int = 10, seed: int = 1) -> Context:
    """A context that writes below `folder`, on the CPU."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    return Context(
        prepared=prepared,
        data=DataConfig(source="tiny", max_length=max_length),
        evaluation=EvaluationConfig(ks=(1, 5, 10)),
        seed=seed,
        device="cpu",
        folder=folder / "out",
        scratch=folder / "scratch",
    )
