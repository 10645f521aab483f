"""A folder that one process, and one thread of it, holds at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recommender.errors import StageError

LOCK_FILE = ".lock"

_held: set[tuple[int, Path]] = set()  # (process, folder): record locks do not part the threads of a process
_guard = threading.Lock()


@contextmanager
def locked(
    folder: Path, *, fix: str = "wait for it, or give this run another folder with --out"
) -> Iterator[None]:
    """Hold a folder alone. Raises StageError when another process or thread holds it.

    A POSIX record lock: it goes away with its process, however that ends, and children do not inherit it.
    """
    import fcntl  # not on Windows, where recipes can at least be read

    busy = StageError("another recpress is working in this folder", where=str(folder), fix=fix)
    mine = os.getpid(), folder.resolve()
    with _guard:
        if mine in _held:  # to open and close the file once more would give the lock away
            raise busy
        _held.add(mine)
    try:
        with (folder / LOCK_FILE).open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise busy from error
            yield
    finally:
        with _guard:
            _held.discard(mine)
