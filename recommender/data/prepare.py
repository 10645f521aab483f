"""Turns a `data:` section into prepared data: a folder of memory-mapped arrays, cached by content."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.config import DataConfig
from recommender.data.content import content_digest
from recommender.data.histories import Histories, build_histories
from recommender.data.origin import Origin, open_origin
from recommender.data.prepared import Prepared
from recommender.errors import InputError, StageError
from recommender.files import complete_folder, digest_of, read_json, sha256_file, write_json

SCHEMA = 1


def prepare(config: DataConfig, cache: Path | None = None) -> Prepared:
    """Read, filter and order a log once; later calls with the same content map the same folder.

    `cache`: the folder of prepared data; default $RECPRESS_CACHE, else ~/.cache/recpress. Raises InputError
    for all that is wrong with the log or the section, StageError when the folder cannot be written.
    """
    cache = cache or default_cache()
    origin = open_origin(config)
    try:
        digests = [content_digest(file, cache / "digests") for file in origin.files]
        folder = _folder(config, origin, digests, cache)
        with _only_one(folder):
            if not _is_complete(folder):
                _write(config, origin, digests, folder)
    except OSError as error:
        raise StageError(f"prepared data cannot be written: {error}", where=str(cache)) from error
    return Prepared(folder)


def find_prepared(config: DataConfig, cache: Path | None = None) -> Prepared | None:
    """What `prepare` would return if it is in the cache already; prepares nothing.

    Raises InputError for files that are not there or cannot be read.
    """
    cache = cache or default_cache()
    origin = open_origin(config)
    digests = [content_digest(file, cache / "digests") for file in origin.files]
    folder = _folder(config, origin, digests, cache)
    return Prepared(folder) if _is_complete(folder) else None


def default_cache() -> Path:
    """$RECPRESS_CACHE, else ~/.cache/recpress."""
    named = os.environ.get("RECPRESS_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "recpress"


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare into `folder`; the lock dies with its process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _effective(config: DataConfig) -> dict[str, Any]:
    """The settings that change the prepared content: no paths, no max_length, no sizes of another source."""
    leave_out = {"interactions", "items", "root", "max_length"}
    if config.source != "synthetic":
        leave_out.add("synthetic")
    return config.model_dump(mode="json", exclude=leave_out)


def _folder(config: DataConfig, origin: Origin, digests: Sequence[str], cache: Path) -> Path:
    """Where this content belongs: the key covers settings, file contents, our code and the libraries used."""
    code = [sha256_file(file) for file in sorted(Path(__file__).parent.glob("*.py"))]
    files = [[file.name, digest] for file, digest in zip(origin.files, digests, strict=True)]
    libraries = [pl.__version__, np.__version__]
    key = digest_of([SCHEMA, origin.name, _effective(config), files, code, libraries])
    return cache / "data" / f"{_slug(origin.name)}-{key[:24]}"


def _is_complete(folder: Path) -> bool:
    """True when all arrays are there in their full size (a cache may have been emptied or cut by hand)."""
    try:
        meta = read_json(folder / "meta.json")
        prepared = Prepared(folder)
        sizes = (
            len(prepared.offsets) == meta["users"] + 1,
            len(prepared.items) == meta["interactions"],
        )
        times = prepared.times
        return (
            all(sizes)
            and meta["has_time"] == (times is not None)
            and (folder / "items.parquet").stat().st_size > 0
        )
    except (InputError, OSError, ValueError, KeyError):
        return False


def _write(config: DataConfig, origin: Origin, digests: Sequence[str], folder: Path) -> None:
    place = config.source or str(config.interactions)
    log, texts = origin.log(), origin.items()
    histories = build_histories(log, config, place)
    catalogue, rows = _catalogue(log.item_ids, histories.items, texts, config)
    items = rows[histories.items]
    content = _content_digests(histories, items, catalogue)
    meta = {
        "schema": SCHEMA,
        "name": origin.name,
        **content,
        "users": len(histories.user_ids),
        "items": len(catalogue),
        "interactions": len(items),
        "ties": histories.ties,
        "duplicates_dropped": histories.duplicates,
        "incomplete_dropped": log.dropped,
        "has_time": histories.times is not None,
        "order_by": histories.order_by,
        "source": config.source,
        "files": [
            {"name": file.name, "sha256": digest} for file, digest in zip(origin.files, digests, strict=True)
        ],
        "config": _effective(config),
    }
    with complete_folder(folder) as temporary:
        np.save(temporary / "offsets.npy", histories.offsets, allow_pickle=False)
        np.save(temporary / "items.npy", items, allow_pickle=False)
        if histories.times is not None:
            np.save(temporary / "times.npy", histories.times, allow_pickle=False)
        pl.DataFrame({"user_id": histories.user_ids}).write_parquet(temporary / "users.parquet")
        catalogue.write_parquet(temporary / "items.parquet")
        write_json(temporary / "meta.json", meta)


def _catalogue(
    log_ids: pl.Series, codes: NDArray[np.int32], texts: pl.DataFrame, config: DataConfig
) -> tuple[pl.DataFrame, NDArray[np.int32]]:
    """The item table by row, and the row of each item code of the log (0: the item was filtered out)."""
    present = np.bincount(codes, minlength=len(log_ids)) > 0
    ids = log_ids.filter(pl.Series(present)).rename("item_id")
    if config.catalogue == "all":
        ids = pl.concat([ids, texts["item_id"]]).unique().sort()
    order = np.random.default_rng(config.item_seed).permutation(len(ids))
    table = pl.DataFrame({"row": np.arange(1, len(ids) + 1, dtype=np.int64), "item_id": ids.gather(order)})
    row_of = pl.DataFrame({"item_id": log_ids}).join(table, on="item_id", how="left", maintain_order="left")
    rows = np.where(present, row_of["row"].fill_null(0).to_numpy(), 0).astype(np.int32)
    catalogue = table.join(texts, on="item_id", how="left", maintain_order="left")
    return catalogue.with_columns(pl.exclude("row", "item_id").fill_null("")), rows


def _content_digests(
    histories: Histories, items: NDArray[np.int32], catalogue: pl.DataFrame
) -> dict[str, str]:
    """`catalogue_digest` covers the item map alone, `digest` all that a model or a metric could see."""
    whole = hashlib.sha256()
    for array in (histories.offsets, items, histories.times):
        whole.update(b"none" if array is None else np.ascontiguousarray(array).data)
    texts = [histories.user_ids.rename("user_id"), *catalogue.drop("row").iter_columns()]
    for column in texts:
        whole.update(_text_digest(column).encode())
    return {"digest": whole.hexdigest(), "catalogue_digest": catalogue_digest(catalogue["item_id"])}


def catalogue_digest(item_ids: pl.Series) -> str:
    """Digest of a catalogue: its ids in the order of their rows."""
    return _text_digest(item_ids.rename("item_id"))


def _text_digest(column: pl.Series) -> str:
    """SHA-256 of a string column: name, length of every value in bytes, all values end to end."""
    digest = hashlib.sha256(column.name.encode() + b"\0")
    digest.update(column.str.len_bytes().cast(pl.Int64).to_numpy().tobytes())
    digest.update(str(column.str.join("").item() if len(column) else "").encode())
    return digest.hexdigest()
