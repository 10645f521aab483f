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

from recommender.data.json_pieces import json_frames, keys_of
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
    """The names of a file's columns; of JSON lines, the keys of its first piece.

    Raises InputError for a file that is empty or cannot be read.
    """
    kind = format_of(file)
    if kind == "parquet":
        return reading(file, lambda: pl.scan_parquet(file, glob=False).collect_schema().names())
    first = next(_records(file, quoted=kind != "jsonl"), b"")
    if not first.strip():
        raise _empty(file)
    return keys_of(file, [first]) if kind == "jsonl" else _header(file, first)


def pieces(file: Path, columns: Sequence[str]) -> Iterator[Piece]:
    """The wanted columns of a file, piece by piece; all columns of text files are strings (or lists of them).

    Raises InputError for a missing column (with the nearest name) and for whatever cannot be read.
    """
    kind = format_of(file)
    check_columns(file, columns)
    if kind == "parquet":
        yield from _parquet(file, columns)
    elif kind == "jsonl":
        yield from _numbered(json_frames(file, _records(file, quoted=False), columns))
    else:
        yield from _numbered(_csv(file, columns))


def check_columns(file: Path, columns: Sequence[str]) -> None:
    """Raise InputError, with the nearest spelling, for the first column that a file does not have.

    The keys of JSON lines are looked for until all have come.
    """
    if format_of(file) != "jsonl":
        names = columns_of(file)
        twice = next((name for name in columns if f"{name}_duplicated_0" in names), None)
        if twice is not None:
            raise InputError(
                f"has more than one column {twice!r}", where=str(file), fix="rename all of them but one"
            )
    elif not (names := keys_of(file, _records(file, quoted=False), columns)):
        raise _empty(file)
    require_columns(file, columns, names)


def require_columns(file: Path, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raise InputError, with the nearest spelling, for the first wanted column that is not there."""
    for name in wanted:
        if name not in names:
            raise InputError(
                f"no column {name!r}{nearest(name, names)}", where=str(file), fix="map the right column"
            )


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Piece]:
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


def _numbered(frames: Iterator[pl.DataFrame]) -> Iterator[Piece]:
    """The frames with the numbers of their first rows; a fault is told with the one where it must be."""
    start = 1
    while True:
        try:
            frame = next(frames, None)
        except InputError as error:
            error.add_note(f"in the part of the file that begins with row {start}")
            raise
        if frame is None:
            return
        yield Piece(frame, start)
        start += len(frame)


def _csv(file: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    header: bytes | None = None
    for block in _records(file, quoted=True):
        end = _first_end(block) if header is None else 0
        header = block[:end] if header is None else header
        content = io.BytesIO(header + block[end:])
        # All columns, wanted or not: in one that is skimmed, a stray quote swallows rows without a word.
        yield reading(file, lambda content=content: _table(file, content)).select(columns)  # type: ignore[misc]


def _header(file: Path, block: bytes) -> list[str]:
    return reading(file, lambda: _table(file, io.BytesIO(block[: _first_end(block)]))).columns


def _table(file: Path, content: io.BytesIO) -> pl.DataFrame:
    return pl.read_csv(content, separator="\t" if format_of(file) == "tsv" else ",", infer_schema=False)


def _empty(file: Path) -> InputError:
    return InputError("the file is empty", where=str(file), fix="give a file with rows")


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
