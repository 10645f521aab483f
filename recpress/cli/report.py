"""`recpress report`: make a run's pages anew from its numbers."""

from pathlib import Path
from typing import Annotated

import typer

from recpress.cli import show
from recpress.cli.options import Json


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Write report.md and report.html of a run (and of its variants) anew from report.json.

    Example: recpress report runs/quickstart
    """
    from bench.report.files import rebuild
    from recpress.cli.run import show_report

    folders = [run, *(file.parent for file in sorted(run.glob("variants/*/report.json")))]
    reports = {folder: rebuild(folder).as_json() for folder in folders}
    for folder, document in reports.items():
        show_report(document)
        show.note(f"report: {folder / 'report.html'}")
    if as_json:
        show.document(reports[run])
