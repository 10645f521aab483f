"""`recpress verify`: is an artifact what it was when it was made?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recpress.cli import show
from recpress.cli.options import Json


def verify(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    variant: Annotated[
        str | None, typer.Option("--variant", help="Variant that answers; default: the manifest's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an artifact's digests, then replay its golden requests on this machine.

    Example: recpress verify runs/quickstart/artifacts/student-onnx
    """
    from export.verify import verify_artifact

    found = verify_artifact(artifact, variant=variant)
    show.note(
        f"{artifact} is whole: {len(found.files)} files as listed, {found.requests} golden requests answered "
        f"alike (largest score difference {found.max_score_difference:.2g})",
        "green",
    )
    for name in found.unlisted:
        show.note(f"  {name} is not listed in the manifest", "yellow")
    if as_json:
        show.document({"status": "whole", **asdict(found)})
