"""`recpress lint`: would the target take this graph?"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recommender.errors import InputError
from recpress.cli import show
from recpress.cli.options import Json

if TYPE_CHECKING:
    from export.lint import Finding


class Target(StrEnum):
    """What is to run the graph."""

    tensorrt = "tensorrt"


class Promised(StrEnum):
    """What its weights are promised to be."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, or the folder of an artifact.")]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Of an artifact: the variant; default: fp32, the canonical.")
]
Promise = Annotated[
    Promised | None,
    typer.Option("--precision", help="What weights are promised to be; of a variant: as it is named."),
]
Profiled = Annotated[
    str | None,
    typer.Option("--profiled", metavar="AXES", help="Axes that a profile covers, by commas: batch,length."),
]
Version = Annotated[
    str | None,
    typer.Option(
        "--tensorrt", metavar="VERSION", help="The TensorRT that is to read it, 10.12; default: any."
    ),
]


def lint(
    model: Model,
    target: Annotated[Target, typer.Option("--target", help="What is to run it.")] = Target.tensorrt,
    precision: Promise = None,
    profiled: Profiled = None,
    variant: Variant = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Check a graph against the static rules of a target; exit 1 where one is broken. Needs no GPU.

    Example: recpress lint runs/quickstart/artifacts/student-onnx --target tensorrt --precision fp32
    """
    from export.lint import lint as lint_graph
    from export.lint.files import files_of

    files, own = files_of(model, variant)
    axes = None if profiled is None else [axis.strip() for axis in profiled.split(",") if axis.strip()]
    meant = _version(version)
    promised = precision.value if precision else own
    found = [
        (file, finding)
        for file in files
        for finding in lint_graph(file, target="tensorrt", precision=promised, profiled=axes, tensorrt=meant)
    ]
    errors = sum(finding.severity == "error" for _, finding in found)
    _show(found, target.value, [file.name for file in files], errors)
    if as_json:
        show.document(_document(files, target.value, promised, found, errors))
    if errors:
        raise typer.Exit(1)


def _version(given: str | None) -> tuple[int, ...] | None:
    """`10.15.1` as numbers. Raises InputError for what is no version."""
    if given is None:
        return None
    if not re.fullmatch(r"\d+(\.\d+)+", given):
        raise InputError(f"{given!r} is no version", where="--tensorrt", fix="write it as in 10.12")
    return tuple(int(part) for part in given.split("."))


def _show(found: "Sequence[tuple[Path, Finding]]", target: str, files: Sequence[str], errors: int) -> None:
    for file in files:
        here = [finding for path, finding in found if path.name == file]
        rows = [(each.severity, each.rule, each.where, each.text, each.fix) for each in here]
        if rows:
            show.table(f"{file} for {target}", ("", "rule", "where", "what is wrong", "fix"), rows)
    warnings = len(found) - errors
    counted = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    show.note(f"{', '.join(files)} for {target}: {counted}", "red" if errors else "green")


def _document(
    files: Sequence[Path],
    target: str,
    precision: str | None,
    found: "Sequence[tuple[Path, Finding]]",
    errors: int,
) -> dict[str, Any]:
    """For `--json`."""
    return {
        "status": "refused" if errors else "clean",
        "exit_code": int(bool(errors)),
        "target": target,
        "precision": precision,
        "files": [str(file) for file in files],
        "findings": [{"file": str(file), **asdict(finding)} for file, finding in found],
    }
