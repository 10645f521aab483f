"""The versions of an artifact's catalogue: which there are, the next number, how one comes into use.

A version is made and proved in an artifact of its own, a hidden folder within the real one that links to the
files which all versions share. Its folder is then moved beside the others, whole and with its manifest, so
whatever stands there as `catalogue-N` with a manifest has been proved.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.catalogue import catalogue_name
from recommender.errors import InputError
from recommender.lock import locked

VERSION = re.compile(r"catalogue-([1-9][0-9]*)")
LEFTOVER = re.compile(r"\.catalogue-[0-9]+\.[0-9]+\.(?:tmp|old)|\.manifest\.json\.[0-9]+\.tmp")


def version_folders(folder: Path) -> dict[int, Path]:
    """{version: its folder} of all versions that an artifact holds, ascending."""
    return {version: path for version, path in _numbered(folder) if (path / "manifest.json").is_file()}


def versions(folder: Path) -> list[int]:
    """Versions of the catalogue that an artifact holds, ascending. Raises InputError when there is none."""
    found = list(version_folders(folder))
    if not found:
        raise InputError("holds no catalogue: is it an artifact?", where=str(folder))
    return found


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = [(VERSION.fullmatch(path.name), path) for path in folder.glob("catalogue-*")]
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def highest_version(folder: Path, manifest: Mapping[str, Any]) -> int:
    """The highest number that a version of this artifact ever had, also where its folder was deleted."""
    told = manifest["catalogue"]
    there = [number for number, _ in _numbered(folder)]
    return max(int(told["version"]), int(told.get("highest_version", 1)), *there)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold an artifact alone, and take away what killed refreshes have left in it.

    Readers are not kept out. Raises InputError for what is no artifact, StageError while another one holds
    it.
    """
    if not (folder / "manifest.json").is_file():
        raise InputError("is no artifact: it has no manifest.json", where=str(folder))
    with locked(folder, fix="wait until it has ended, then give the same command again"):
        for path in folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


@contextmanager
def staged(folder: Path, version: int, shared: Iterable[str]) -> Iterator[Path]:
    """The folder in which a version is made, with an empty folder for it and links to the shared files.

    What is left of it afterwards goes away.
    """
    stage = folder / f".{catalogue_name(version)}.{os.getpid()}.tmp"
    stage.mkdir()
    try:
        (stage / catalogue_name(version)).mkdir()
        for name in shared:
            (stage / name).symlink_to(Path("..") / name)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, folder: Path, version: int) -> None:
    """Move a proved version to its place and let the manifest point to it; neither needs space.

    A kill between the two leaves a whole version that is not in use. Raises OSError where something stands
    at its place, or the manifest cannot be replaced; then nothing has changed.
    """
    name = catalogue_name(version)
    os.rename(stage / name, folder / name)
    try:
        os.replace(stage / "manifest.json", folder / "manifest.json")
    except OSError:
        os.rename(folder / name, stage / name)
        raise
