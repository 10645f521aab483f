"""`recpress refresh-items`: another version of an artifact's catalogue, or an older one back."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recommender.errors import InputError
from recpress.cli import show
from recpress.cli.options import Json


def refresh_items(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors", help="The new item vectors: .parquet (item_id, vector), .npy, .safetensors."
        ),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            "--items", help="Which row is which item (columns index, item_id), where the file has no ids."
        ),
    ] = None,
    titles: Annotated[
        Path | None,
        typer.Option(
            "--titles",
            help="Titles of new items, and other ones of items that stay: a table with item_id and title.",
        ),
    ] = None,
    withdraw_missing: Annotated[
        bool,
        typer.Option("--withdraw-missing", help="Take items that have no new vector out of the catalogue."),
    ] = False,
    restore: Annotated[
        int | None, typer.Option("--restore", help="Put this version of the catalogue back instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Swap the catalogue of an artifact without touching its body; readers that have it open are unharmed.

    The vectors must come from the model that the artifact was exported from. A variant that does not rank
    them as their exact product stops the refresh. Older versions stay.

    Example: recpress refresh-items runs/quickstart/artifacts/student-onnx --vectors new-vectors.parquet
    """
    _check(vectors, restore, items is not None or titles is not None or withdraw_missing)
    if restore is not None:
        from export.refresh import restore as put_back

        put_back(artifact, restore)
        show.note(f"{artifact} serves version {restore} of its catalogue", "green")
        told: dict[str, object] = {"version": restore}
    else:
        assert vectors is not None
        told = _refresh(artifact, vectors, items, titles, withdraw_missing)
    if as_json:
        show.document({"status": "done", "artifact": str(artifact), **told})


def _check(vectors: Path | None, restore: int | None, more: bool) -> None:
    """`more`: whether options that go with --vectors are given."""
    if (vectors is None) == (restore is None):
        raise InputError(
            "either new vectors are given, or a version to put back",
            where="refresh-items",
            fix="say --vectors FILE, or --restore N",
        )
    if restore is not None and more:
        raise InputError(
            "a version that is put back comes as it was: --items, --titles and --withdraw-missing go with "
            "--vectors",
            where="refresh-items",
            fix=f"say --restore {restore} alone",
        )


def _refresh(
    artifact: Path, vectors: Path, items: Path | None, titles: Path | None, withdraw_missing: bool
) -> dict[str, object]:
    from export.refresh import refresh_items as refresh
    from recommender.incoming.catalogue import read_catalogue

    frame, table = read_catalogue(vectors, items, titles)
    found = refresh(artifact, frame, table, withdraw_missing=withdraw_missing, source=vectors.name)
    show.note(
        f"{artifact} serves version {found.version} of its catalogue: {found.items:,} items, "
        f"{found.changed:,} changed, {found.added:,} added, {found.withdrawn:,} withdrawn",
        "green",
    )
    return asdict(found)
