"""The finished parts of a scoring job, beside its output, and how they become the output.

    OUTPUT.parts/
      progress.json                             the job (input, artifact, options), what its input holds
      000000000000-000000004096-81920.parquet   the answers of users 0 to 4095, 81,920 bytes; or not there

A part is written beside its name, synced and renamed, so a kill at any moment costs the batch in hand and
nothing else. At the end all parts are joined into a file beside the output, which then takes its name.
"""

import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from recommender.data.readers import format_of
from recommender.errors import InputError, StageError, is_disk_full
from recommender.files import read_json, write_json
from recommender.lock import LOCK, locked

SCHEMA = 2
ROW_GROUP = 1 << 17
SHOWN = 3
PART = r"[0-9]{12}-[0-9]{12}(-[0-9]+)?\.(csv|tsv|jsonl|parquet|pq)"
LEFT = rf"\.({PART}|joined\.\w+|progress\.json\.[0-9]+|hashes\w*)\.tmp"  # by a kill
OURS = re.compile(rf"\.lock|progress\.json|{PART}|{LEFT}")
FRESH = "--fresh forgets what is there and starts anew"


def output_kind(output: Path) -> str:
    """csv, tsv, jsonl or parquet by the output's name. Raises InputError for any other, or a packed one."""
    kind = format_of(output)
    if kind is None or output.suffix.lower() == ".gz":
        raise InputError(
            f"cannot write {output.name!r}",
            where="--output",
            fix="end the name in .parquet, .csv, .tsv or .jsonl",
        )
    return kind


class Parts:
    """The parts folder of one output; whoever changes it holds its lock."""

    def __init__(self, output: Path) -> None:
        self.output, self.kind = output, output_kind(output)
        self.folder = output.with_name(f"{output.name}.parts")
        self.record = self.folder / "progress.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder alone, made if need be; one in which nothing was begun goes away again.

        Raises InputError where it cannot be made or is not ours, StageError when another process holds it.
        """
        self._refuse_foreign()
        with locked(self.folder, fix="wait for it, or choose another --output"):
            try:
                yield
            finally:
                if not self.record.exists():
                    self._remove()

    def _refuse_foreign(self) -> None:
        """Raise InputError for a folder with files of somebody else in which no job of ours was begun."""
        try:
            foreign = [] if self.record.exists() else self._foreign()
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", where=str(self.folder), fix="choose another --output"
            ) from error
        if foreign:
            raise InputError(
                f"is needed for the job, but holds other files: {', '.join(foreign[:SHOWN])}",
                where=str(self.folder),
                fix="move them away, or choose another --output",
            )

    def _foreign(self) -> list[str]:
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path.name for path in there if not OURS.fullmatch(path.name))

    def read(self, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any] | None:
        """The record of a job that was begun, or None.

        Raises InputError when it is not ours to read, or when `check` raises what broken data raise.
        """
        if not self.record.is_file():
            return None  # killed before it was written, or when all was done
        try:
            record = read_json(self.record)
            if record["schema_version"] == SCHEMA:
                _ = record["replaces"], record["joined"], record["fresh"]
                check(record)
                return dict(record)
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", where=str(self.record), fix="choose another --output"
            ) from error
        except (InputError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise InputError("its record is unreadable", where=str(self.folder), fix=FRESH) from error
        raise InputError("was begun by another version of recpress", where=str(self.folder), fix=FRESH)

    def begin(self, identity: Mapping[str, Any], survey: Mapping[str, Any], *, fresh: bool) -> dict[str, Any]:
        """Forget older parts and write down what the job is; gives the record. The caller holds the lock.

        `fresh`: it replaces the output that is there.
        """
        self.record.unlink(missing_ok=True)
        for file in self._files():
            file.unlink()
        record = {"schema_version": SCHEMA, "identity": identity, "survey": survey, "fresh": fresh}
        record["joined"] = None  # in time: the fingerprint of the output
        return self.replacing(record)

    def replacing(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write down that the output as it is now is to be replaced, if the job may; gives the record."""
        there = record["fresh"] and self.output.exists()
        record = dict(record) | {"replaces": fingerprint(self.output) if there else None}
        with writing(self.record):
            write_json(self.record, record)
        return record

    def sweep(self) -> int:
        """How many users are done; what a kill left half-written is removed."""
        users = 0
        for file in self._files():
            start, stop, size = _told_by(file)
            if start == users < stop and size == file.stat().st_size:
                users = stop
            else:  # never finished, or cut, or behind a part that somebody took away
                file.unlink()
        return users

    def add(self, start: int, stop: int, frame: pl.DataFrame) -> None:
        """Write the answers of users [start, stop). Raises StageError when the disk is full."""
        content = io.BytesIO()
        if self.kind == "parquet":
            frame.write_parquet(content)
        else:
            _write_text(frame, content, self.kind, header=False)
        size = content.getbuffer().nbytes
        path = self.folder / f"{start:012d}-{stop:012d}-{size}.{self.kind}"
        temporary = self.folder / f".{path.name}.tmp"
        with writing(path), _room_given_back(temporary):
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                _sync(file)
            os.replace(temporary, path)

    def join(self, columns: pl.DataFrame) -> None:
        """Make the output of all parts, then remove them. `columns`: an empty frame like the parts.

        Raises StageError when the disk is full: the parts stay, and nothing stands under the output's name.
        """
        temporary = self.folder / f".joined.{self.kind}.tmp"
        with writing(self.output), _room_given_back(temporary):
            self._join(temporary, columns)
            # Should a kill come before `drop` is through, the next start knows whose output it is.
            write_json(self.record, read_json(self.record) | {"joined": fingerprint(temporary)})
            os.replace(temporary, self.output)
        self.drop()

    def _join(self, temporary: Path, columns: pl.DataFrame) -> None:
        files = [file for file in self._files() if not _is_left(file)]
        if self.kind == "parquet":
            lazy = pl.scan_parquet(files, glob=False)
            lazy.sink_parquet(temporary, row_group_size=ROW_GROUP, maintain_order=True)
            with temporary.open("rb+") as written:
                _sync(written)
            return
        with temporary.open("wb") as file:
            _write_text(columns, file, self.kind, header=True)
            for part in files:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, file, 1 << 20)
            _sync(file)

    def drop(self) -> None:
        """Remove the parts, then the record: a kill never leaves parts that nobody knows. Then the folder."""
        for file in self._files():
            file.unlink()
        self.record.unlink(missing_ok=True)
        self._remove()

    def _remove(self) -> None:
        """Remove what is ours, and the folder unless somebody has put something of their own into it."""
        if not self.folder.is_dir():
            return
        for file in self._files():
            file.unlink()
        if not self._foreign():
            (self.folder / LOCK).unlink(missing_ok=True)
            try:
                self.folder.rmdir()
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:  # another job took the folder over in this moment
                    raise

    def _files(self) -> list[Path]:
        """Parts and what a kill left of them."""
        files = (file for file in self.folder.iterdir() if OURS.fullmatch(file.name))
        return sorted(file for file in files if file.name not in (self.record.name, LOCK))


def fingerprint(file: Path) -> list[int]:
    """What tells whether a file is still the same one: inode, size, time of change; a rename keeps them."""
    stat = file.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _is_left(file: Path) -> bool:
    return file.name.startswith(".") and file.name.endswith(".tmp")


def _told_by(file: Path) -> tuple[int, int, int]:
    """First user, one past the last, and bytes of a part, by its name; -1 for what is no part."""
    numbers = file.stem.split("-")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return -1, -1, -1
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _write_text(frame: pl.DataFrame, file: IO[bytes], kind: str, *, header: bool) -> None:
    if kind == "jsonl":
        frame.write_ndjson(file)
    else:
        frame.write_csv(file, include_header=header, separator="\t" if kind == "tsv" else ",")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _room_given_back(temporary: Path) -> Iterator[None]:
    """Remove a file that could not be finished: it takes room that the user may be short of."""
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into a StageError that says so."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        if is_disk_full(error):
            raise StageError(
                "the disk is full",
                where=str(path),
                fix="free some space; the same command goes on after the last finished part",
            ) from error
        raise StageError(f"cannot be written: {error}", where=str(path)) from error
