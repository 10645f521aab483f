"""The one error family of recpress: what is wrong, where, and how to mend it.

The command line prints these without a traceback and leaves with `exit_code`.
"""

import difflib
import errno
import importlib
import os
from collections.abc import Iterable
from types import ModuleType


class RecpressError(Exception):
    """A failure that a person can understand and act on; exit code 1 unless a subclass says otherwise."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        mend = f"\n  fix: {self.fix}" if self.fix else ""
        return f"{place}{self.what}{mend}"


class InputError(RecpressError):
    """The input, the recipe or the command is wrong; nothing was written. Exit code 2."""

    exit_code = 2


class StageError(RecpressError):
    """A stage could not do its work although its input was right (disk full, NaN loss). Exit code 1."""


class GateError(StageError):
    """A gate measured something and the measurement does not allow to go on. Exit code 1."""


def require(module: str, *, extra: str, for_: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises InputError when the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{for_} needs the package {module!r}, which cannot be imported ({error})",
            fix=f'pip install "recpress[{extra}]"',
        ) from error


def nearest(name: str, valid: Iterable[str]) -> str:
    """' (did you mean 'x'?)' for the closest valid spelling, or the list of valid ones."""
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (valid: {', '.join(options)})"


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is ENOSPC; some libraries say so in their text only."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
