"""`recpress data`: interaction logs in, memory-mapped data out."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from recommender.errors import InputError
from recpress.cli import show
from recpress.cli.options import Json, Sets

app = typer.Typer(no_args_is_help=True, help="Interaction logs: prepare, describe, fetch, list the sources.")

Data = Annotated[str, typer.Argument(help="A named source, a log file, a folder, or a YAML section.")]


@app.command("prepare")
def prepare(data: Data, sets: Sets = None, as_json: Json = False) -> None:
    """Read, filter and order a log once, into the cache; a second call finds it there.

    Example: recpress data prepare log.csv.gz --set min_item=3 --set 'columns={user: uid}'
    """
    from recommender.data.prepare import prepare as prepare_data
    from recpress.single import data_config

    prepared = prepare_data(data_config(data, sets or ()))
    keys = ("name", "users", "items", "interactions", "ties", "duplicates_dropped")
    facts: dict[str, Any] = {key: prepared.meta[key] for key in keys}
    show.table("", ("", ">"), [(key, _plain(value)) for key, value in facts.items()])
    show.note(f"prepared: {prepared.path}")
    if as_json:
        show.document({"path": str(prepared.path), "digest": prepared.digest, **facts})


@app.command("stats")
def stats(data: Data, sets: Sets = None, as_json: Json = False) -> None:
    """Describe a data set: sizes, history lengths, popularity, ties, repeats.

    Example: recpress data stats synthetic
    """
    from recommender.data.prepare import prepare as prepare_data
    from recommender.data.stats import stats as stats_of
    from recpress.single import data_config

    found = stats_of(prepare_data(data_config(data, sets or ())))
    rows = []
    for key, value in found.items():
        if isinstance(value, dict):
            rows += [(f"{key}, {name}", _plain(entry)) for name, entry in value.items()]
        else:
            rows.append((key, _plain(value)))
    show.table("", ("", ">"), rows)
    if as_json:
        show.document(found)


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A named source; see: recpress data sources.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of named sources; default: $RECPRESS_DATA.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option("--mirror", help="Address that holds the same file names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download the original files of a named source; shows its terms first.

    Example: recpress data fetch ml-1m --root data
    """
    from recommender.data.fetch import fetch as fetch_data

    named = os.environ.get("RECPRESS_DATA")
    if root is None and not named:
        raise InputError("where should the files go?", fix="give --root DIR, or set RECPRESS_DATA")
    folder = fetch_data(name, root or Path(str(named)), on_licence=show.note, mirror=mirror)
    show.note(f"fetched: {folder}")
    if as_json:
        show.document({"source": name, "folder": str(folder)})


@app.command("sources")
def sources(as_json: Json = False) -> None:
    """List the named sources, and the folders below $RECPRESS_DATA that can be named like one.

    Example: recpress data sources
    """
    from recommender.data.origin import data_root, log_file
    from recommender.data.sources import SOURCES

    found = [
        {"name": each.name, "what": each.what, "terms": each.licence, "fetch": each.fetchable}
        for each in SOURCES
    ]
    if os.environ.get("RECPRESS_DATA"):
        for folder in sorted(data_root(None, "").iterdir()):
            if folder.is_dir() and log_file(folder):
                found.append(
                    {"name": folder.name, "what": f"your folder {folder}", "terms": "yours", "fetch": False}
                )
    rows = [(each["name"], each["what"], "yes" if each["fetch"] else "") for each in found]
    show.table("", ("source", "what it is", "fetch"), rows)
    if as_json:
        show.document(found)


def _plain(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
