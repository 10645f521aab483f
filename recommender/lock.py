"""A folder that one process, and one thread of it, holds at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recommender.errors import InputError, StageError

LOCK = ".lock"
ATTEMPTS = 100  # where others remove the folder meanwhile

_held: set[tuple[int, Path]] = set()  # (process, folder): record locks do not part the threads of a process
_guard = threading.Lock()


@contextmanager
def locked(
    folder: Path, *, fix: str = "wait for it, or give this run another folder with --out"
) -> Iterator[None]:
    """Hold a folder alone; it is made if need be.

    Raises InputError when it cannot be made or written to, StageError when another process or thread holds
    it.

    A POSIX record lock: it goes away with its process, however that ends, and children do not inherit it.
    """
    import fcntl  # not on Windows, where recipes can at least be read

    taken = StageError("another recpress is working in this folder", where=str(folder), fix=fix)
    with _in_this_process(folder, taken):
        for _ in range(ATTEMPTS):
            file = _opened(folder)
            if file is None:
                continue
            with file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise taken from error
                if _is_there(file, folder / LOCK):
                    yield
                    return
        raise taken  # whoever it is removes the folder again and again


@contextmanager
def _in_this_process(folder: Path, taken: StageError) -> Iterator[None]:
    """One thread at a time: to open and close the file once more would give the lock away."""
    mine = os.getpid(), folder.resolve()
    with _guard:
        if mine in _held:
            raise taken
        _held.add(mine)
    try:
        yield
    finally:
        with _guard:
            _held.discard(mine)


def _opened(folder: Path) -> IO[str] | None:
    """The lock's file; None when whoever held the folder has removed it in this moment."""
    try:
        folder.mkdir(exist_ok=True)
        return (folder / LOCK).open("a")
    except FileNotFoundError as error:
        if not folder.parent.is_dir():
            raise InputError("no such folder", where=str(folder.parent)) from error
        return None
    except OSError as error:
        raise InputError(
            f"cannot be worked in: {error.strerror}",
            where=str(folder),
            fix="choose another place, or let yourself write there",
        ) from error


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether an open file still stands under its name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
