"""Downloads the original files of a named source: terms first, stated checksums, whole files or none."""

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recommender.data.sources import Remote, Source, find_source
from recommender.errors import InputError
from recommender.files import read_json, sha256_file, write_json

TIMEOUT_SECONDS = 60
RECORD = "fetched.json"


def fetch(name: str, root: Path, *, on_licence: Callable[[str], None], mirror: str | None = None) -> Path:
    """Download a source below `root` and return its folder; what is there already is checked only.

    `on_licence` is called with the terms before anything is downloaded; raise in it to refuse. `mirror`: an
    address that holds the same file names, instead of the public one. `fetched.json` records address and
    SHA-256 of each file, and whether a public MD5 confirmed it or it was only recorded on first use.
    Raises InputError: unknown source, nothing to fetch, no connection (says where to put the file by hand), a
    checksum that differs.
    """
    source = find_source(name)
    if not source.fetchable:
        raise InputError(
            f"the source {name!r} comes with recpress: there is nothing to fetch", where="data fetch"
        )
    folder = root / source.folder
    on_licence(f"{source.name}: {source.what}\n{source.licence}")
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    for remote in source.remotes:
        address = f"{mirror.rstrip('/')}/{remote.name}" if mirror else remote.url
        record[remote.name] = _fetch_one(remote, address, folder, record.get(remote.name))
        write_json(folder / RECORD, record)
        if remote.members:
            _unpack(folder / remote.name, folder, remote, source)
    return folder


def _fetch_one(remote: Remote, address: str, folder: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    """Make sure that one file is there and right; returns its entry of the record."""
    file = folder / remote.name
    if known is not None and file.is_file() and sha256_file(file) == known["sha256"]:
        return known
    stated = _stated_md5(f"{address}.md5", file) if remote.md5 and not file.is_file() else None
    if not file.is_file():
        _download(address, file, stated)
    digest = sha256_file(file)
    if known is not None and known["sha256"] != digest:
        raise InputError(
            f"the file differs from the one recorded before (SHA-256 {digest}, was {known['sha256']})",
            where=str(file),
            fix=f"delete it and fetch again; if the publisher changed it, delete its entry in {RECORD} too",
        )
    checked = (
        f"MD5 {stated} stated by {address}.md5" if stated else "not confirmed: SHA-256 recorded on first use"
    )
    return {"url": address, "sha256": digest, "size_bytes": file.stat().st_size, "checked": checked}


def _stated_md5(address: str, file: Path) -> str:
    """The MD5 that the publisher states beside the file."""
    with _open(address, file) as answer:
        text = answer.read(4096).decode("utf-8", errors="replace")
    found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    if found is None:
        raise InputError(f"no MD5 in the answer: {text[:80]!r}", where=address)
    return found.group().lower()


def _download(address: str, file: Path, md5: str | None) -> None:
    """Stream an address to a file beside `file`, check it, rename it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with _open(address, file) as answer, temporary.open("wb") as out:
            expected = answer.headers.get("Content-Length")
            while piece := _read(answer, address, file):
                out.write(piece)
                digest.update(piece)
                size += len(piece)
        if expected is not None and size != int(expected):
            raise _unreachable(address, file, f"the connection broke after {size} of {expected} bytes")
        if md5 is not None and digest.hexdigest() != md5:
            raise InputError(
                f"the download has MD5 {digest.hexdigest()}, but its publisher states {md5}",
                where=address,
                fix="try again; if it stays, do not use the file",
            )
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _open(address: str, file: Path) -> Any:
    try:
        return urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise _unreachable(address, file, f"the server answers {error.code} {error.reason}") from error
    except OSError as error:  # no network, no such host, refused, timed out
        raise _unreachable(address, file, f"no connection ({error})") from error


def _read(answer: Any, address: str, file: Path) -> bytes:
    try:
        piece: bytes = answer.read(1 << 20)
    except OSError as error:
        raise _unreachable(address, file, f"the connection broke ({error})") from error
    return piece


def _unreachable(address: str, file: Path, why: str) -> InputError:
    name = file.name
    return InputError(
        f"{why}; {name} was not downloaded",
        where=address,
        fix=f"check the name and the connection, or load {address} elsewhere and put it at {file}",
    )


def _unpack(archive: Path, folder: Path, remote: Remote, source: Source) -> None:
    """Take the wanted members out of a zip; they land in `folder` by their base names, each in one step."""
    try:
        with zipfile.ZipFile(archive) as packed:
            inside = {Path(info.filename).name: info for info in packed.infolist() if not info.is_dir()}
            for member in remote.members:
                if member not in inside:
                    if member in source.files:
                        raise InputError(f"the archive holds no {member}", where=str(archive))
                    continue
                temporary = folder / f".{member}.{os.getpid()}.tmp"
                try:
                    with packed.open(inside[member]) as file, temporary.open("wb") as out:
                        shutil.copyfileobj(file, out)
                    os.replace(temporary, folder / member)
                finally:
                    temporary.unlink(missing_ok=True)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"not a whole zip archive: {error}", where=str(archive), fix="delete it and fetch again"
        ) from error
