"""Finds what a `data:` section points at: the files behind it and how to read them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recommender.data.config import Columns, DataConfig
from recommender.data.log import Log
from recommender.data.originals import parser_of
from recommender.data.read_items import empty_items, read_items
from recommender.data.read_log import read_log
from recommender.data.readers import files_of
from recommender.data.sources import Source, find_source
from recommender.data.synthetic import synthetic_items, synthetic_log
from recommender.errors import InputError

ENDINGS = (".csv.gz", ".csv", ".parquet", ".jsonl.gz", ".jsonl", ".tsv.gz", ".tsv")


@dataclass(frozen=True)
class Origin:
    """A log that can be read: its name, the files its content hangs on, and the two readers."""

    name: str
    files: tuple[Path, ...]
    log: Callable[[], Log]
    items: Callable[[], pl.DataFrame]


def open_origin(config: DataConfig) -> Origin:
    """The origin of a data section; reads nothing yet.

    Raises InputError for a name that is neither a source nor a folder, and for files that are not there.
    """
    if config.interactions is not None:
        return _own_files(_stem(config.interactions), config.interactions, config.items, config)
    name = config.source or ""
    if name == "synthetic":
        size = config.synthetic
        return Origin(name, (), lambda: synthetic_log(size), lambda: synthetic_items(size))
    root = data_root(config.root, name)
    log = log_file(root / name)
    if log is not None:
        return _own_files(name, log, _first(root / name, "items"), config)
    folders = (child.name for child in root.iterdir() if child.is_dir() and log_file(child))
    return _original(find_source(name, tuple(folders)), root, config)


def data_root(root: Path | None, name: str) -> Path:
    """The folder of named sources: `root`, else $RECPRESS_DATA; InputError when neither is a folder."""
    named = root or (Path(os.environ["RECPRESS_DATA"]) if os.environ.get("RECPRESS_DATA") else None)
    if named is None:
        raise InputError(
            f"the source {name!r} needs the folder that holds it",
            where="data.root",
            fix="set data.root or the environment variable RECPRESS_DATA (only `synthetic` needs no files)",
        )
    if not named.is_dir():
        raise InputError("not a folder", where=str(named), fix="correct data.root or $RECPRESS_DATA")
    return named


def log_file(folder: Path) -> Path | None:
    """The interaction log of a folder laid out as interactions.* and items.*, or None."""
    return _first(folder, "interactions")


def _first(folder: Path, stem: str) -> Path | None:
    return next((folder / f"{stem}{end}" for end in ENDINGS if (folder / f"{stem}{end}").exists()), None)


def _original(source: Source, root: Path, config: DataConfig) -> Origin:
    """A source read from the files as their makers publish them."""
    if config.columns != Columns():
        raise InputError(
            f"the columns of {source.name!r} are known", where="data.columns", fix="leave data.columns out"
        )
    paths = []
    for name in source.files:
        candidates = (root / source.folder / name, root / source.folder / f"{name}.gz")
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise InputError(
                f"the source {source.name!r} lacks its file {name}",
                where=str(candidates[0]),
                fix=f"put it there (also packed as {name}.gz), or `recpress data fetch {source.name}`",
            )
        paths.append(found)
    log, items = paths
    parser = parser_of(source)
    config = config.model_copy(update={"columns": parser.columns})
    return Origin(
        source.name,
        (log, items),
        lambda: read_log([log], config, parser.scan),
        lambda: parser.items(items),
    )


def _own_files(name: str, log: Path, items: Path | None, config: DataConfig) -> Origin:
    logs = files_of(log)
    item_files = files_of(items) if items is not None else ()
    return Origin(
        name,
        (*logs, *item_files),
        lambda: read_log(logs, config),
        lambda: read_items(item_files, config.columns) if item_files else empty_items(),
    )


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name
