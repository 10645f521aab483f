"""Options that several verbs share, with the same spelling and help everywhere."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a value (parsed as YAML), also a whole section."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder; default: runs/NAME.", show_default=False),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to compute; auto: CUDA if there is one.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget finished stages of this run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Last line of stdout: one JSON document.")]


def command_line() -> str:
    """The command as it was given, for reports and manifests."""
    return shlex.join(["recpress", *sys.argv[1:]])
