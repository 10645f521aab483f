"""Reads tables: CSV, TSV and JSON lines (each also .gz), Parquet, and folders of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from recommender.errors import InputError, nearest

T = TypeVar("T")

Types = Mapping[str, Any]
"""The columns that are wanted and the type of each; None: whatever its values look like."""

Scan = Callable[[Path, Types | None], pl.LazyFrame]
"""Opens one file lazily; without types every column, and those of text files as text."""

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
KNOWN = ", ".join(suffix if kind == "parquet" else f"{suffix}(.gz)" for suffix, kind in SUFFIXES.items())

STRAY_QUOTE = 'look for a quote inside of a cell: put the cell between quotes and double it, "5"" pipe"'
SIGNS_OF_STRAY_QUOTES = ("CSV malformed", "as dtype `str`")  # in errors of the CSV reader


def format_of(path: Path) -> str | None:
    """csv, tsv, jsonl or parquet by the file's name (an ending .gz is looked through), or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    suffixes = suffixes[:-1] if packed else suffixes
    kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    return None if packed and kind == "parquet" else kind


def files_of(path: Path) -> tuple[Path, ...]:
    """The data files that a path stands for: itself, or those of a folder in sorted order.

    Raises InputError when nothing there can be read, and for what is no file, such as a pipe: data are read
    more than once.
    """
    try:
        if path.is_dir():
            files = tuple(file for file in sorted(path.iterdir()) if file.is_file() and _is_data(file))
            if not files:
                raise InputError(
                    "the folder holds no data file", where=str(path), fix=f"known endings: {KNOWN}"
                )
            return files
        if not path.exists():
            raise InputError("file not found", where=str(path), fix=f"relative paths start at {Path.cwd()}")
        if not path.is_file():
            raise InputError(
                "is neither a file nor a folder", where=str(path), fix="write its content to a file first"
            )
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if format_of(path) is None:
        raise InputError(f"unknown file type {path.name!r}", where=str(path), fix=f"known endings: {KNOWN}")
    return (path,)


def _is_data(file: Path) -> bool:
    return not file.name.startswith((".", "_")) and format_of(file) is not None


def scan(file: Path, types: Types | None = None) -> pl.LazyFrame:
    """The `Scan` of the general formats, chosen by the file's name."""
    kind = format_of(file)
    if kind == "parquet":
        return pl.scan_parquet(file, glob=False)
    if kind == "jsonl":
        return _scan_json_lines(file, types)
    # The CSV reader skims what nobody selects, and a stray quote there swallows rows without a word.
    return _scan_text(file, types).map_batches(_same, projection_pushdown=False, streamable=True)


def _scan_text(file: Path, types: Types | None) -> pl.LazyFrame:
    separator = "\t" if format_of(file) == "tsv" else ","
    lazy = pl.scan_csv(file, separator=separator, infer_schema=False, glob=False)
    if types is None:
        return lazy
    guessed = {name for name, dtype in types.items() if dtype is None}
    given = {name: types.get(name, pl.String) for name in lazy.collect_schema() if name not in guessed}
    return pl.scan_csv(
        file, separator=separator, infer_schema_length=1000, schema_overrides=given, glob=False
    )


def _same(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


def _scan_json_lines(file: Path, types: Types | None) -> pl.LazyFrame:
    lazy = pl.scan_ndjson(file, infer_schema_length=1000)
    if types is None:
        return lazy
    found = lazy.collect_schema()
    # Only the wanted columns are parsed: the others may change their type from line to line.
    schema = {name: dtype or found[name] for name, dtype in types.items() if name in found}
    # The JSON reader does not build categoricals, but it turns numbers into strings.
    schema = {n: pl.String if isinstance(t, pl.Categorical) else t for n, t in schema.items()}
    return pl.scan_ndjson(file, schema=schema)


def reading(what: Path, read: Callable[[], T]) -> T:
    """Call `read`; a file that cannot be read becomes an InputError that names it."""
    try:
        return read()
    except pl.exceptions.NoDataError as error:
        raise InputError(
            "the file is empty", where=str(what), fix="give a file with a header and rows"
        ) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        lines = str(error).strip().splitlines()
        if what.exists() and what.stat().st_size == 0:
            raise InputError("the file is empty", where=str(what), fix="give a file with rows") from error
        what_is_wrong = lines[0] if lines else type(error).__name__
        raise InputError(
            f"cannot be read: {what_is_wrong}",
            where=str(what),
            fix=STRAY_QUOTE if any(sign in str(error) for sign in SIGNS_OF_STRAY_QUOTES) else None,
        ) from error


def require_column(name: str, names: Sequence[str], file: Path, setting: str) -> None:
    """Raise InputError, with the nearest spelling, when `name` is not among the columns."""
    if name not in names:
        raise InputError(
            f"no column {name!r}{nearest(name, names)}",
            where=str(file),
            fix=f"name the right one with data.columns.{setting}",
        )


def as_id(column: str, dtype: pl.DataType, to: pl.DataType) -> pl.Expr:
    """Ids as strings (or a categorical `to`). Whole floats (a column with gaps) lose '.0': 17.0 is '17'."""
    value = pl.col(column)
    if dtype == to:
        return value
    if dtype.is_float():
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String)).cast(to)
    return value.cast(pl.String).cast(to)
