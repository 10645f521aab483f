"""`recpress doctor`: one table of what is there, what is not, and what mends it."""

from dataclasses import asdict

import typer

from recpress.cli import show
from recpress.cli.options import Json

MARKS = {"ok": "ok", "absent": "-", "missing": "MISSING", "broken": "BROKEN"}


def doctor(as_json: Json = False) -> None:
    """Show what is installed, what is missing, and what mends it; exits 1 when something needed is not right.

    Example: recpress doctor
    """
    from recpress.doctor import examine

    found = examine()
    rows = [(each.what, MARKS[each.state], each.detail, each.mend) for each in found]
    show.table("", ("what", "", "", "what mends it"), rows)
    if as_json:
        show.document([asdict(each) for each in found])
    if any(each.state in ("missing", "broken") for each in found):
        raise typer.Exit(1)
