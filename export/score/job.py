"""What makes two starts of a scoring job the same job, and what is wrong with one before it begins."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.score.answers import JOINT, Answering, Form
from export.score.parts import FRESH, fingerprint
from recommender.errors import InputError
from recommender.files import digest_of, sha256_file


def check_job(artifact: Answering, source: Path, output: Path, form: Form, k: int, batch: int) -> None:
    """Refuse what can be seen to be wrong without reading the input. Raises InputError; writes nothing."""
    if not 1 <= k <= artifact.limit:
        raise InputError(
            f"k is {k}, but the artifact answers lists of 1 to {artifact.limit}",
            where="-k",
            fix="ask for fewer, or export the artifact with a larger top_k",
        )
    if batch < 1:
        raise InputError(f"a batch of {batch} users", where="--batch", fix="give 1 or more")
    if output.exists() and not output.is_file():
        raise InputError("is no file", where=str(output), fix="name a file with --output")
    if not output.parent.is_dir():
        raise InputError(
            "no such folder", where=str(output.parent), fix="make it, or choose another --output"
        )
    inside = output.resolve().is_relative_to(source.resolve())
    if inside:
        raise InputError(
            "the output would be a part of the input", where=str(output), fix="choose another --output"
        )
    with_joint = next((each for each in artifact.item_ids if JOINT in each), None)
    if form.lists and form.kind in ("csv", "tsv") and with_joint is not None:
        raise InputError(
            f"lists in {form.kind.upper()} have {JOINT!r} between ids, but the item {with_joint!r} has one",
            where=str(output),
            fix="write .parquet or .jsonl, or one row per item (without --lists)",
        )


def check_place(output: Path, replaces: list[int] | None) -> None:
    """Refuse to write over a file that the job did not set out to replace. Raises InputError."""
    if output.exists() and fingerprint(output) != replaces:
        raise InputError(
            "is there already", where=str(output), fix="choose another --output, or replace it: --fresh"
        )


def stats_of(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, path, size and time of change of the input's files. Raises InputError for one out of reach."""
    found = []
    for file in files:
        with _readable(file):
            stat = file.stat()
        entry = {"name": file.name, "path": str(file.resolve())}
        found.append(entry | {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return found


def _sha256(file: Path) -> str:
    with _readable(file):
        return sha256_file(file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=str(file), fix="let yourself read it"
        ) from error


def identity_of(artifact: Answering, files: Sequence[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the output hangs on: the files with their SHA-256, the artifact's manifest, the options."""
    described = zip(stats_of(files), files, strict=True)
    return {
        "files": [stat | {"sha256": _sha256(file)} for stat, file in described],
        "artifact": _artifact(artifact),
        "options": dict(options),
    }


def check_identity(identity: Mapping[str, Any]) -> None:
    """Raise LookupError or TypeError for what `identity_of` cannot have given."""
    for file in identity["files"]:
        _ = str(file["name"]), str(file["path"]), file["size"] + file["mtime_ns"], str(file["sha256"])
    _ = identity["artifact"]["manifest"], identity["artifact"]["variant"]
    _ = _flat(identity["options"])


def refuse_other(
    identity: Mapping[str, Any],
    artifact: Answering,
    files: Sequence[Path],
    options: Mapping[str, Any],
    place: Path,
) -> None:
    """Raise InputError, saying what differs, when a job that was begun is not the one asked for now."""
    differs = [*_input_changes(identity["files"], files)]
    now = _artifact(artifact)
    if now["variant"] != identity["artifact"]["variant"]:
        differs.append(f"the variant was {identity['artifact']['variant']}, is {now['variant']}")
    elif now != identity["artifact"]:
        differs.append("the artifact is another one, or was changed")
    begun, asked = _flat(identity["options"]), _flat(options)
    for name in sorted(name for name in begun.keys() & asked.keys() if begun[name] != asked[name]):
        differs.append(f"{name} was {begun[name]}, is {asked[name]}")
    if differs:
        raise InputError(
            f"holds a job that was begun otherwise: {'; '.join(differs)}",
            where=str(place),
            fix=f"give the same command as then to go on; {FRESH}",
        )


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """The layout's columns among the other options; two layouts differ in what the file is read as."""
    layout = options["layout"]
    columns = {f"--{name}": value for name, value in layout.items() if name != "kind"}
    return {**options, **columns, "layout": layout["kind"]}


def _artifact(artifact: Answering) -> dict[str, str]:
    return {"manifest": digest_of(artifact.manifest), "variant": artifact.variant}


def _input_changes(begun: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> list[str]:
    """What changed of the input; a file that was only touched or moved is known by its digest."""
    now = stats_of(files)
    if [each["name"] for each in begun] != [each["name"] for each in now]:
        return [f"the input was {_names(begun)}, is {_names(now)}"]
    changes = []
    for old, new, file in zip(begun, now, files, strict=True):
        if old["size"] != new["size"]:
            changes.append(f"{file.name} had {old['size']:,} bytes, has {new['size']:,}")
        elif (old["path"], old["mtime_ns"]) == (new["path"], new["mtime_ns"]):
            continue
        elif _sha256(file) != old["sha256"]:
            changes.append(f"{file.name} has another content")
    return changes


def _names(files: Sequence[Mapping[str, Any]]) -> str:
    names = [str(each["name"]) for each in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
