"""JSON lines in pieces: columns of strings or of lists of strings, whatever a line leaves out.

What a column holds is found anew in each piece, for the first ones may hold nothing but nulls.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recommender.data.readers import reading
from recommender.errors import InputError

ONE_EACH = "give one JSON object per line"


def keys_of(file: Path, blocks: Iterable[bytes], wanted: Sequence[str] | None = None) -> list[str]:
    """The keys of all lines, or of those up to where all `wanted` ones have come; [] for an empty file.

    Raises InputError for a line that is no JSON object.
    """
    keys: dict[str, None] = {}
    for block in blocks:
        for record in _objects(file, block):
            keys.update(dict.fromkeys(record))
            if wanted is not None and keys.keys() >= set(wanted):
                return list(keys)
    return list(keys)


def json_frames(file: Path, blocks: Iterable[bytes], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Each block as a table of the columns: strings, or lists of them; numbers as they are written.

    Raises InputError for what is no JSON, for objects, and for a column that holds both lists and other
    values.
    """
    holds_lists: dict[str, bool] = {}  # without columns in which there were nulls only
    for block in blocks:
        lists = {name for name, holds in holds_lists.items() if holds}
        try:
            frame = _parsed(block, columns, lists)
        except pl.exceptions.PolarsError:  # no JSON, or no lists in this block
            lists, frame = set(), reading(file, lambda block=block: _parsed(block, columns))  # type: ignore[misc]
        found = _kinds(file, block, frame)
        for name, holds in found.items():
            if holds_lists.setdefault(name, holds) != holds:
                raise _mixed(file, name)
        wanted = {name for name, holds in found.items() if holds}
        yield frame if wanted <= lists else _parsed(block, columns, wanted)  # lists, as was just seen


def _parsed(block: bytes, columns: Sequence[str], lists: Iterable[str] = ()) -> pl.DataFrame:
    """Every column as strings, which a list becomes as well; those in `lists` as lists of strings."""
    schema = dict.fromkeys(columns, pl.String()) | dict.fromkeys(lists, pl.List(pl.String))
    return pl.read_ndjson(io.BytesIO(block), schema=schema)


def _kinds(file: Path, block: bytes, frame: pl.DataFrame) -> dict[str, bool]:
    """Whether a column holds lists, of those that hold anything."""
    found = {}
    for name, dtype in frame.schema.items():
        values = frame[name]
        if isinstance(dtype, pl.List):
            found[name] = True  # the reader refuses any other value there
        elif values.str.contains(r"^\s*[\[{]").any():  # a list, an object, or a text that looks so
            kinds = {type(record.get(name)) for record in _objects(file, block)} - {type(None)}
            if dict in kinds:
                raise InputError(
                    f"column {name!r} holds objects", where=str(file), fix="give ids, or lists of ids"
                )
            if list in kinds and len(kinds) > 1:
                raise _mixed(file, name)
            found[name] = list in kinds
        elif values.count():
            found[name] = False
    return found


def _mixed(file: Path, name: str) -> InputError:
    return InputError(
        f"column {name!r} holds lists in some lines and other values in others",
        where=str(file),
        fix="give each line a list (or null), or each line a text",
    )


def _objects(file: Path, block: bytes) -> Iterator[dict[str, Any]]:
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"cannot be read: {error}", where=str(file), fix=ONE_EACH) from error
        if not isinstance(record, dict):
            raise InputError("a line is no JSON object", where=str(file), fix=ONE_EACH)
        yield record
