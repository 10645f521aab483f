"""The `recpress` command: its verbs, and how errors become messages and exit codes."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import recpress
from recommender.errors import RecpressError
from recpress import processes
from recpress.cli import (
    data,
    doctor,
    gate,
    lint,
    recipes,
    recommend,
    refresh_items,
    report,
    run,
    score,
    show,
    stage,
    verify,
)
from recpress.stages import STAGES

HELP = """Make LLM-based sequential recommenders small enough to serve, and prove what it cost.

Exit codes: 0 done; 1 a stage or a gate failed; 2 the input or the recipe is wrong; 130 interrupted.
Add --debug anywhere to see tracebacks.

Example: recpress run quickstart
"""


WRONG_USAGE = 2


class Interrupted(RecpressError):
    """Ctrl-C."""

    exit_code = 130


class Verbs(TyperGroup):
    """The group of verbs; Ctrl-C is an answer like any other."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; finished stages are kept, the same command goes on") from error


app = typer.Typer(
    cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


def _version(wanted: bool) -> None:
    if wanted:
        show.text(f"recpress {recpress.__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
for _name in (name for name, kind in STAGES.items() if kind.alone):
    app.command(_name, help=stage.help_of(_name))(stage.verb(_name))
app.command("recommend")(recommend.recommend)
app.command("refresh-items")(refresh_items.refresh_items)
app.command("score")(score.score)
app.command("report")(report.report)
app.command("gate")(gate.gate)
app.command("lint")(lint.lint)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and shows no traceback unless --debug is given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    try:
        app(args=words, prog_name="recpress")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code == WRONG_USAGE and "--json" in given:
            show.document({"status": "failed", "exit_code": code, "error": "wrong usage; stderr says what"})
        return code
    except Exception as error:
        if "--debug" in given:
            raise
        code = error.exit_code if isinstance(error, RecpressError) else 1
        show.failure(describe(error), code, as_json="--json" in given)
        if processes.world_size() > 1:
            os._exit(code)  # an orderly end would wait for the other processes, which the launcher is to end
        return code
    return 0


def describe(error: Exception) -> str:
    """An error in words: what, where, how to mend it."""
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, RecpressError):
        return f"{error}{notes}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename}); free some space and give the same command again{notes}"
    if isinstance(error, OSError):
        return f"{error.filename or 'system'}: {error.strerror or error}{notes}"
    what = f"{type(error).__name__}: {error}"
    return f"internal error: {what}{notes}\n  please report it with the output of --debug"
