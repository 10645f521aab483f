"""Which graphs to check: a file, or those of an artifact's variant."""

from pathlib import Path
from typing import cast, get_args

from export.lint.findings import Precision
from recommender.errors import InputError, nearest


def files_of(model: Path, variant: str | None = None) -> tuple[list[Path], Precision | None]:
    """(ONNX files, the precision that the variant promises by its name) of a file or an artifact's folder.

    `variant`: of an artifact; None: the canonical graph. Raises InputError when there is no such file or
    variant, or the variant is no ONNX.
    """
    if not model.is_dir():
        if variant is not None:
            raise InputError(
                f"--variant {variant} is of an artifact, and this is a file",
                where=str(model),
                fix="give the folder of the artifact",
            )
        return [model], None
    from export.runtime import ArtifactError, read_manifest
    from export.variants import CANONICAL

    try:
        entries = {entry["name"]: entry for entry in read_manifest(model)["variants"]}
    except ArtifactError as error:
        raise InputError(str(error), where=str(model)) from error
    name = variant or CANONICAL
    if name not in entries:
        raise InputError(f"has no variant {name!r}{nearest(name, entries)}", where=str(model))
    entry = entries[name]
    names = [entry["graph"]] if "graph" in entry else [entry["body"], entry["head"]]
    for file in names:
        if Path(file).suffix != ".onnx":
            raise InputError(
                f"{name} is {file}, which is built already; the rules are about ONNX",
                where=str(model),
                fix="check the variant that it was built from",
            )
    promised = cast("Precision", entry["precision"]) if entry["precision"] in get_args(Precision) else None
    return [model / file for file in names], promised
