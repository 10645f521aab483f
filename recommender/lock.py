"""A folder that one process holds at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recommender.errors import StageError


@contextmanager
def locked(
    folder: Path, *, fix: str = "wait for it, or give this run another folder with --out"
) -> Iterator[None]:
    """Hold a folder alone. Raises StageError when another process holds it.

    A POSIX record lock: it goes away with its process, however that ends, and children do not inherit it.
    """
    import fcntl  # not on Windows, where recipes can at least be read

    with (folder / ".lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StageError(
                "another recpress is working in this folder",
                where=str(folder),
                fix=fix,
            ) from error
        yield
