"""Content digests of input files, remembered by path, size and times, so that no file is read twice."""

import time
from pathlib import Path

from recommender.errors import InputError
from recommender.files import digest_of, read_json, sha256_file, write_json

FRESH_SECONDS = 2.0
"""A file that changed this short ago may change again in one tick of the file system: not remembered."""


def content_digest(file: Path, memo: Path) -> str:
    """SHA-256 of a file's content; `memo` is a folder of remembered digests, one small file per path.

    Raises InputError when the file cannot be read.
    """
    path = file.resolve()
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error}", where=str(file)) from error
    stamp = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    note = memo / f"{digest_of(str(path))[:32]}.json"
    if note.exists():
        known = read_json(note)
        if known["stamp"] == stamp:
            return str(known["sha256"])
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise InputError(f"cannot be read: {error}", where=str(file)) from error
    if time.time() - max(stat.st_mtime, stat.st_ctime) > FRESH_SECONDS:
        write_json(note, {"stamp": stamp, "sha256": digest})
    return digest
