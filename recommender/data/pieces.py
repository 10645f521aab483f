"""Reads a table from its beginning to its end in pieces, so that its size does not matter.

Text is cut at the ends of records into pieces of about `PIECE_BYTES`; Parquet is read by ranges of rows that
take about as much in memory. Which columns are wanted is said beforehand, and ids stay the user's strings.
"""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl

from recommender.data.readers import format_of, reading
from recommender.errors import InputError, nearest

PIECE_BYTES = 1 << 23
RECORD_BYTES = 1 << 28
FIRST_ROWS = 1024  # of a Parquet file, to see how wide its rows are
NEWLINE, QUOTE = b"\n", b'"'


class Piece(NamedTuple):
    """Some rows of a file in their order."""

    frame: pl.DataFrame
    first: int  # number of the first row, from 1; a header is not counted


def columns_of(file: Path) -> list[str]:
    """The names of a file's columns; of JSON lines, those of its first piece.

    Raises InputError for a file that is empty or cannot be read.
    """
    kind = format_of(file)
    if kind == "parquet":
        return reading(file, lambda: pl.scan_parquet(file, glob=False).collect_schema().names())
    first = next(_records(file, quoted=kind != "jsonl"), b"")
    return list(_schema(file, first))


def pieces(file: Path, columns: Sequence[str]) -> Iterator[Piece]:
    """The wanted columns of a file, piece by piece; all columns of text files are strings (or lists of them).

    Raises InputError for a missing column (with the nearest name) and for whatever cannot be read.
    """
    yield from _parquet(file, columns) if format_of(file) == "parquet" else _text(file, columns)


def require_columns(file: Path, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raise InputError, with the nearest spelling, for the first wanted column that is not there."""
    for name in wanted:
        if name not in names:
            raise InputError(
                f"no column {name!r}{nearest(name, names)}", where=str(file), fix="map the right column"
            )


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Piece]:
    require_columns(file, columns, columns_of(file))
    lazy = pl.scan_parquet(file, glob=False).select(columns)
    start, rows = 0, FIRST_ROWS
    while True:
        wanted = lazy.slice(start, rows)
        frame = reading(file, lambda wanted=wanted: wanted.collect())  # type: ignore[misc]
        if frame.is_empty():
            return
        yield Piece(frame, start + 1)
        start += len(frame)
        width = max(1.0, frame.estimated_size() / len(frame))
        rows = max(1, min(int(2 * PIECE_BYTES / width), 4 * rows))


def _text(file: Path, columns: Sequence[str]) -> Iterator[Piece]:
    lines = format_of(file) == "jsonl"
    schema: dict[str, pl.DataType] | None = None
    header, start = b"", 1
    for block in _records(file, quoted=not lines):
        if schema is None:
            schema = _schema(file, block)
            require_columns(file, columns, list(schema))
            schema = {name: schema[name] for name in columns} if lines else schema
            header = b"" if lines else block[: _first_end(block)]
            block = block[len(header) :]
        try:
            frame = _parsed(file, header, block, schema, columns)
        except InputError as error:
            error.add_note(f"in the part of the file that begins with row {start}")
            raise
        yield Piece(frame, start)
        start += len(frame)
    if schema is None:
        raise _empty(file)


def _parsed(
    file: Path, header: bytes, block: bytes, schema: dict[str, pl.DataType], columns: Sequence[str]
) -> pl.DataFrame:
    if format_of(file) == "jsonl":
        return reading(file, lambda: pl.read_ndjson(io.BytesIO(block), schema=schema))
    separator = "\t" if format_of(file) == "tsv" else ","
    content = io.BytesIO(header + block)
    # All columns, wanted or not: in one that is skimmed, a stray quote swallows rows without a word.
    frame = reading(file, lambda: pl.read_csv(content, separator=separator, infer_schema=False))
    return frame.select(columns)


def _schema(file: Path, block: bytes) -> dict[str, pl.DataType]:
    """Columns and types of a text file by its first piece: strings; in JSON lines also lists of strings."""
    if not block.strip():
        raise _empty(file)
    if format_of(file) != "jsonl":
        separator = "\t" if format_of(file) == "tsv" else ","
        top = io.BytesIO(block[: _first_end(block)])
        found = reading(file, lambda: pl.read_csv(top, separator=separator, infer_schema=False))
        return dict(found.schema)
    found = reading(file, lambda: pl.read_ndjson(io.BytesIO(block), infer_schema_length=None))
    return {name: _json_type(dtype) for name, dtype in found.schema.items()}


def _empty(file: Path) -> InputError:
    return InputError("the file is empty", where=str(file), fix="give a file with rows")


def _json_type(found: pl.DataType) -> pl.DataType:
    """What a JSON value is read as: numbers become the strings that they are written as."""
    if isinstance(found, pl.List):
        return pl.List(pl.String)
    return found if isinstance(found, pl.Struct) else pl.String()


def _records(file: Path, *, quoted: bool) -> Iterator[bytes]:
    """The content in pieces that end where a record ends; `quoted`: a newline between quotes ends none."""
    rest = b""
    try:
        with _opened(file) as stream:
            while block := stream.read(PIECE_BYTES):
                block = rest + block
                end = _last_end(block, quoted)
                rest = block[end:]
                if len(rest) > RECORD_BYTES:
                    raise InputError(
                        f"a record is longer than {RECORD_BYTES >> 20} MB",
                        where=str(file),
                        fix="look for a quote that is not closed"
                        if quoted
                        else "give one JSON value per line",
                    )
                if end:
                    yield block[:end]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read: {error}", where=str(file)) from error
    if rest:
        yield rest


def _opened(file: Path) -> IO[bytes]:
    packed = file.suffix.lower() == ".gz"
    return gzip.open(file, "rb") if packed else file.open("rb")  # type: ignore[return-value]


def _last_end(block: bytes, quoted: bool) -> int:
    """One past the last newline that ends a record; 0 where there is none."""
    end = block.rfind(NEWLINE) + 1
    if not quoted:
        return end
    odd = block.count(QUOTE, 0, end) % 2
    while end and odd:
        before = block.rfind(NEWLINE, 0, end - 1) + 1
        odd = (odd + block.count(QUOTE, before, end)) % 2
        end = before
    return end


def _first_end(block: bytes) -> int:
    """One past the newline that ends the first record; the whole length where there is none."""
    blank = len(block) - len(block.lstrip(b"\r\n"))
    end = block.find(NEWLINE, blank) + 1
    while end and block.count(QUOTE, 0, end) % 2:
        end = block.find(NEWLINE, end) + 1
    return end or len(block)
