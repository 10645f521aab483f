"""`recpress gate`: may a candidate take the place of another, by the report of a run?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recommender.errors import InputError
from recpress.cli import show
from recpress.cli.options import Json

if TYPE_CHECKING:
    from bench.demand import Demand
    from bench.gate import Verdict


Run = Annotated[Path, typer.Argument(help="Folder of a run, or of one of its variants.")]
Candidate = Annotated[str, typer.Option("--candidate", help="What is to be shipped.")]
Against = Annotated[str, typer.Option("--against", help="What it is held against.")]
Metric = Annotated[str, typer.Option("--metric", help="Metric of --min-quality.")]
Quality = Annotated[
    float | None, typer.Option("--min-quality", help="Share of the metric that must be kept: 0.97.")
]
Speed = Annotated[float | None, typer.Option("--min-speedup", help="How many times as fast it must be.")]
Load = Annotated[str, typer.Option("--load", help="Load of --min-speedup: full or real.")]
Batch = Annotated[int, typer.Option("--batch", help="Users per call of --min-speedup.")]
Floor = Annotated[
    float | None, typer.Option("--max-aa-floor", help="Most that timing may differ for no reason: 0.05.")
]
Size = Annotated[float | None, typer.Option("--max-size-ratio", help="Largest share of the stored size.")]
Memory = Annotated[float | None, typer.Option("--max-memory-ratio", help="Largest share of the peak memory.")]


def gate(
    run: Run,
    candidate: Candidate,
    against: Against,
    metric: Metric = "ndcg@10",
    min_quality: Quality = None,
    min_speedup: Speed = None,
    load: Load = "real",
    batch: Batch = 1,
    max_aa_floor: Floor = None,
    max_size_ratio: Size = None,
    max_memory_ratio: Memory = None,
    as_json: Json = False,
) -> None:
    """Exit 1 unless the lower confidence bounds of a run's report hold.

    Example: recpress gate runs/quickstart --candidate student-onnx --against teacher --min-quality 0.97
    """
    from bench.gate import decide, refusals
    from bench.report.files import read

    demand = _demand(
        candidate=candidate, against=against, metric=metric, min_quality=min_quality,
        min_speedup=min_speedup, load=load, batch=batch, max_aa_floor=max_aa_floor,
        max_size_ratio=max_size_ratio, max_memory_ratio=max_memory_ratio,
    )  # fmt: skip
    verdicts = decide(read(run), demand, where=str(run / "report.json"))
    shut = bool(refusals(verdicts))
    _show(verdicts, f"{candidate} against {against}", shut)
    if as_json:
        show.document(_document(run, demand, verdicts, shut))
    if shut:
        raise typer.Exit(1)


def _document(run: Path, demand: "Demand", verdicts: "list[Verdict]", shut: bool) -> dict[str, Any]:
    """For `--json`."""
    return {
        "status": "shut" if shut else "open",
        "exit_code": int(shut),
        "run": str(run),
        "demand": demand.model_dump(exclude_none=True),
        "verdicts": [verdict.as_document() for verdict in verdicts],
    }


def _demand(**given: Any) -> "Demand":
    """The demand of the options. Raises InputError that names the wrong ones."""
    from pydantic import ValidationError

    from bench.demand import Demand
    from recpress.messages import problems_of

    try:
        return Demand.model_validate(given)
    except ValidationError as error:
        problems = [
            f"{' '.join('--' + str(part).replace('_', '-') for part in each.place)} {each.message}".strip()
            for each in problems_of(error, Demand, given)
        ]
        raise InputError("; ".join(problems), where="gate", fix="see: recpress gate --help") from error


def _show(verdicts: "list[Verdict]", title: str, shut: bool) -> None:
    columns = ("demand", ">asked", ">measured", ">bound", "verdict", "")
    rows = [
        (
            each.what,
            each.asked_text,
            each.measured_text,
            each.bound_text,
            "holds" if each.holds else "FAILS",
            each.note,
        )
        for each in verdicts
    ]
    show.table(title, columns, rows)
    show.note(f"the gate is {'shut' if shut else 'open'}", "red" if shut else "green")
