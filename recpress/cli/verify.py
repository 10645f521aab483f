"""`recpress verify`: is an artifact, or a model repository, what it was when it was made?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recommender.errors import InputError
from recpress.cli import show
from recpress.cli.options import Json


def verify(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact or of a model repository.")],
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="Of an artifact: who answers; default: the manifest's."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="Of a repository: the server to ask, http://localhost:8000 or grpc://localhost:8001 "
            "(recpress[triton]).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an artifact's digests, then replay its golden requests on this machine; of a model repository
    also its configurations, and with --url the answers of the server that loaded it.

    Example: recpress verify runs/quickstart/artifacts/student-onnx
    """
    from export.triton.repository import MARK

    if (artifact / MARK).is_file():
        if variant is not None:
            raise InputError(
                "--variant is of an artifact; a repository's models are all asked",
                where=str(artifact),
                fix="leave --variant out",
            )
        _verify_repository(artifact, url, as_json)
        return
    if url is not None:
        raise InputError(
            "--url asks a server, and this folder is no model repository",
            where=str(artifact),
            fix="give the folder that an export with format: triton wrote",
        )
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


def _verify_repository(folder: Path, url: str | None, as_json: bool) -> None:
    from export.triton.verify import verify_repository

    found = verify_repository(folder, url=url)
    by = f"the server at {url}" if url else "its graphs here"
    show.note(
        f"{folder} is whole: {len(found.files)} files as listed, configurations fit; {by} answered "
        f"{found.requests} golden requests to {', '.join(found.replayed) or 'no model'} alike (largest score "
        f"difference {found.max_score_difference:.2g} of the largest score)",
        "green" if found.replayed else "yellow",
    )
    for name, why in found.not_replayed.items():
        show.note(f"  {name} was not replayed here: {why}; ask a server (--url)", "yellow")
    for name in found.unlisted:
        show.note(f"  {name} is not listed in the manifest", "yellow")
    if as_json:
        show.document({"status": "whole", **asdict(found)})
