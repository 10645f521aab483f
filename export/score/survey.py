"""Looks through a file of users before anything is scored: how many, strange items, who comes twice.

So a job of hours fails in its first minute, or not for its input. Memory stays flat: 8 bytes per user go to a
nameless temporary file, which is searched for repeats one range of hashes after the other.
"""

import difflib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from export.score.known import Catalogue
from export.score.parts import writing
from export.score.read import Histories
from recommender.errors import InputError
from recommender.stage import Progress

UInt64 = NDArray[np.uint64]
HASHES = 1 << 22  # that are searched at once: 32 MB
NAMES = 1000  # unknown ids that are remembered by name
SHOWN = 3


@dataclass(frozen=True)
class Survey:
    """What a file of users holds."""

    users: int
    interactions: int  # with items that the artifact knows
    empty_users: int  # without any such item
    unknown_items: int  # interactions with items that it does not know
    unknown_users: int  # users who have some
    missing_items: int  # interactions that name no item
    unknown_ids: tuple[tuple[str, int], ...]  # the most frequent ones

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"unknown_ids": [list(pair) for pair in self.unknown_ids]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Survey":
        """What `as_json` gave."""
        return cls(**{**values, "unknown_ids": tuple((name, times) for name, times in values["unknown_ids"])})


def survey(
    found: Callable[[], Iterable[Histories]],
    catalogue: Catalogue,
    place: Path,
    folder: Path,
    progress: Progress,
) -> Survey:
    """Count what `found()` gives; it is called again only to name users who come twice.

    `place` is named in errors, `folder` takes the temporary file. Raises InputError for a file without users
    and for users who come more than once.
    """
    users = interactions = empty = unknown = touched = missing = 0
    names: Counter[str] = Counter()
    with _hashes_in(folder) as hashes:
        for histories in found():
            batch, strange = catalogue.rows_of(histories)
            with writing(folder):
                hashes.write(histories.users.hash().to_numpy().tobytes())
                hashes.flush()
            users += len(batch.users)
            interactions += len(batch.rows)
            empty += int(np.count_nonzero(batch.lengths == 0))
            unknown, touched, missing = (
                unknown + len(strange.ids), touched + strange.users, missing + strange.missing,
            )  # fmt: skip
            _remember(names, strange.ids)
            progress("step", {"step": users, "total": None, "text": f"looking through {place.name}"})
        if not users:
            raise InputError("the file holds no users", where=str(place), fix="give a file with rows")
        with writing(folder):
            again = repeated(hashes, users)
    if len(again):
        _refuse_repeats(found(), again, place)
    return Survey(users, interactions, empty, unknown, touched, missing, tuple(names.most_common(SHOWN)))


@contextmanager
def _hashes_in(folder: Path) -> Iterator[IO[bytes]]:
    """A nameless file, whose faults are told as such."""
    with writing(folder):
        file = tempfile.TemporaryFile(prefix=".hashes", suffix=".tmp", dir=folder)  # noqa: SIM115
    try:
        yield file
    finally:
        with writing(folder):
            file.close()


def repeated(hashes: IO[bytes], count: int) -> UInt64:
    """The values that stand more than once in a file of uint64, ascending; holds about `HASHES` at a time."""
    passes = np.uint64(count // HASHES + 1)
    found = [np.zeros(0, np.uint64)]
    for number in range(int(passes)):
        kept = [piece[piece % passes == number] for piece in _read(hashes)]
        values = np.sort(np.concatenate([found[0], *kept]))
        found.append(np.unique(values[1:][values[1:] == values[:-1]]))
    return np.sort(np.concatenate(found))


def _read(hashes: IO[bytes]) -> Iterator[UInt64]:
    hashes.seek(0)
    while piece := hashes.read(HASHES):
        yield np.frombuffer(piece, np.uint64)


def _refuse_repeats(found: Iterable[Histories], again: UInt64, place: Path) -> None:
    """Raise InputError when users with these hashes are truly the same, and not only alike in their hash."""
    some = pl.Series(again[:NAMES])
    counts: Counter[str] = Counter()
    for histories in found:
        counts.update(histories.users.filter(histories.users.hash().is_in(some.implode())).to_list())
    twice = [(name, times) for name, times in counts.most_common() if times > 1]
    if twice:
        shown = ", ".join(f"{name!r} ({times} times)" for name, times in twice[:SHOWN])
        more = f" and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
        raise InputError(
            f"users come more than once: {shown}{more}",
            where=str(place),
            fix="give one line per user; the rows of a user in an interaction log must follow one another: "
            "sort the log by its user column",
        )


def _remember(names: Counter[str], ids: pl.Series) -> None:
    if not len(ids):
        return
    for name, times in ids.value_counts(sort=True).head(NAMES).iter_rows():
        if name in names or len(names) < NAMES:
            names[name] += times


def refuse_unknown(found: Survey, item_ids: Sequence[str], place: Path) -> None:
    """Raise InputError, with the nearest known ids, when the file names items that nobody knows."""
    if not found.unknown_items:
        return
    shown = ", ".join(f"{name!r} {times} times{near(name, item_ids)}" for name, times in found.unknown_ids)
    raise InputError(
        f"{found.unknown_items:,} interactions of {found.unknown_users:,} users are with items that the "
        f"artifact does not know: {shown}",
        where=str(place),
        fix="give the ids as they were in training, or leave these interactions out with --unknown skip",
    )


def near(item_id: str, item_ids: Sequence[str]) -> str:
    """' (did you mean 'x'?)' for the nearest of at most 20,000 ids, else what ids look like."""
    alike = [known for known in item_ids if known[:2] == item_id[:2]] or item_ids
    close = difflib.get_close_matches(item_id, alike[:20_000], n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (ids look like {item_ids[0]!r})"
