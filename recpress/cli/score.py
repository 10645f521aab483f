"""`recpress score`: a file of users in, their recommendations out; goes on where it was stopped."""

import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recommender.errors import InputError
from recpress.cli import show
from recpress.cli.options import Json
from recpress.cli.progress import Display

if TYPE_CHECKING:
    from export.score.read import Layout
    from export.score.users import Scored

LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


class Unknown(StrEnum):
    """What becomes of item ids that the artifact does not know."""

    error = "error"
    skip = "skip"


class Duplicates(StrEnum):
    """What stays of an item that a user has several times."""

    keep = "keep"
    first = "first"
    last = "last"


Source = Annotated[
    Path, typer.Option("--input", help="CSV, TSV, JSON lines (each also .gz), Parquet, or a folder.")
]
Output = Annotated[Path, typer.Option("--output", help="A .parquet, .csv, .tsv or .jsonl file.")]
Log = Annotated[
    bool, typer.Option("--log", help="The input is an interaction log, its rows grouped by user.")
]
User = Annotated[str, typer.Option("--user", help="Column with the user's id.")]
History = Annotated[
    str | None, typer.Option("--history", help="Column with the item ids, oldest first; default: history.")
]
Separator = Annotated[
    str | None, typer.Option("--separator", help="Between the ids where a history is text; default: a comma.")
]
Item = Annotated[
    str | None, typer.Option("--item", help="Of a log: column with the item's id; default: item_id.")
]
OrderBy = Annotated[
    str | None,
    typer.Option(
        "--order-by",
        help="Of a log: column of times or positions, or `file`; default: timestamp, position or file.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Users that are scored and stored at once.")]
MaskSeen = Annotated[
    bool | None,
    typer.Option(
        "--mask-seen/--no-mask-seen",
        help="Never recommend what the history holds; default: as the artifact was evaluated.",
        show_default=False,
    ),
]
OnUnknown = Annotated[
    Unknown, typer.Option("--unknown", help="Items that the artifact does not know: an error, or left out.")
]
Repeats = Annotated[
    Duplicates | None,
    typer.Option("--duplicates", help="Repeated items of a user; default: as in the artifact's recipe."),
]
Lists = Annotated[bool, typer.Option("--lists", help="One row per user, in place of one per item.")]
Anew = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Replace the output, forget an earlier job of it; the same one, begun with --fresh, goes on.",
    ),
]


def score(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    source: Source,
    output: Output,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items per user.")] = 10,
    log: Log = False,
    user: User = "user_id",
    history: History = None,
    separator: Separator = None,
    item: Item = None,
    order_by: OrderBy = None,
    variant: Annotated[str | None, typer.Option(help="Variant; default: the manifest's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the model.")] = None,
    batch: Batch = 4096,
    mask_seen: MaskSeen = None,
    unknown: OnUnknown = Unknown.error,
    duplicates: Repeats = None,
    lists: Lists = False,
    fresh: Anew = False,
    as_json: Json = False,
) -> None:
    """Score a file of users; the same command goes on where it was stopped. Needs no torch.

    Example: recpress score runs/quickstart/artifacts/student-onnx --input users.csv --output top.parquet
    """
    layout = _layout(log, user, history=history, separator=separator, item=item, order_by=order_by)
    from export.artifact import open_artifact
    from export.score.users import Options
    from export.score.users import score as score_users

    options = Options(
        layout=layout,
        k=k,
        mask_seen=mask_seen,
        unknown=unknown.value,
        duplicates=None if duplicates is None else duplicates.value,
        lists=lists,
        batch=batch,
    )
    opened = open_artifact(artifact, variant=variant, threads=threads)
    with Display() as display:
        done = score_users(opened, source, output, options, fresh=fresh, progress=Told(display))
    rate = "" if done.users_per_second is None else f", {done.users_per_second:,.0f} users/s"
    show.note(f"scored: {output} ({done.survey.users:,} users, {show.seconds(done.seconds)}{rate})", "green")
    if as_json:
        show.document(_document(artifact, source, opened.variant, done))


class Told:
    """Hands progress to a display, and where there is no terminal adds a line now and then."""

    def __init__(self, display: Display) -> None:
        self.display, self.last = display, time.monotonic()

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """One event."""
        self.display(event, values)
        if event != "step" or self.display.console.is_terminal or time.monotonic() - self.last < LINE_EVERY:
            return
        self.last = time.monotonic()
        total = f" of {values['total']:,}" if values.get("total") else ""
        left = values.get("seconds_left")
        ends = "" if left is None else f", {show.seconds(left)} left"
        self.display("note", {"text": f"{values['text']}: {values['step']:,}{total} users{ends}"})


def _layout(log: bool, user: str, **columns: str | None) -> "Layout":
    """The form of the input. Raises InputError for an option that belongs to the other form."""
    from export.score.read import Interactions, Lines

    fitting = ("item", "order_by") if log else ("history", "separator")
    given = {name: value for name, value in columns.items() if value is not None}
    for name in given:
        if name not in fitting:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} is for {'one line per user' if log else 'interaction logs'}",
                where=option,
                fix="leave out --log" if log else "add --log if the input has one row per interaction",
            )
        if not given[name]:
            raise InputError(
                "is empty", where=f"--{name.replace('_', '-')}", fix="give at least one character"
            )
    return Interactions(user, **given) if log else Lines(user, **given)


def _document(artifact: Path, source: Path, variant: str, done: "Scored") -> dict[str, Any]:
    return {
        "status": "done",
        "artifact": str(artifact),
        "variant": variant,
        "input": str(source),
        "output": str(done.output),
        **done.options.as_json(),
        **done.survey.as_json(),
        "resumed_after": done.resumed_after,
        "seconds": done.seconds,
        "users_per_second": done.users_per_second,
    }
