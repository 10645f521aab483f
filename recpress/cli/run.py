"""`recpress run`: a recipe from the log to the report."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recommender.files import read_json
from recpress import processes
from recpress.cli import show
from recpress.cli.options import (
    Device,
    DeviceOption,
    DryRun,
    Fresh,
    Json,
    Out,
    Sets,
    command_line,
)
from recpress.device import resolve_device

BEFORE_TORCH = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # ours is the only bar
    # libgomp's threads spin while they wait; where a core is shared with any other process, each of the many
    # small kernels of a training step then waits for a time slice: measured more than ten times slower
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Environment that torch and transformers read when they are imported; what the user has set stays."""

if TYPE_CHECKING:
    from recpress.plan import Plan
    from recpress.processes import Crew
    from recpress.recipe import Loaded
    from recpress.runner import RunResult


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    sets: Sets = None,
    out: Out = None,
    device: DeviceOption = Device.auto,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: from an interaction log to a deployable artifact and a report.

    Finished stages are kept: the same command goes on where it stopped, and runs only what changed.

    Example: recpress run slmrec --set data.root=$RECPRESS_DATA --out runs/beauty
    """
    from recpress.recipe import load_recipe

    carry_out(lambda: load_recipe(recipe, sets or ()), out, device, dry_run, fresh, as_json)


def carry_out(
    load: "Callable[[], Loaded]", out: Path | None, device: Device, dry_run: bool, fresh: bool, as_json: bool
) -> None:
    """Plan or run a recipe and show what came of it; of several processes only the first one does."""
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    crew = processes.join(resolve_device(device.value)) if processes.world_size() > 1 else processes.ALONE
    if not processes.is_first():
        crew.follow()
        return
    with crew.led():
        loaded = load()
        folder = out or Path("runs") / loaded.recipe.name
        if dry_run:
            from recpress.cli.progress import Display
            from recpress.plan import plan

            with Display() as display:
                found = plan(
                    loaded, folder, device=resolve_device(device.value), fresh=fresh, progress=display
                )
            show_plan(found, as_json)
            return
        show_result(_run(loaded, folder, resolve_device(device.value), fresh, crew), as_json)


def _run(loaded: "Loaded", folder: Path, device: str, fresh: bool, crew: "Crew") -> "RunResult":
    from recpress.cli.progress import Display
    from recpress.runner import Settings, run

    with Display() as display:
        settings = Settings(device=device, fresh=fresh, progress=display, command=command_line(), crew=crew)
        return run(loaded, folder, settings)


def show_result(result: "RunResult", as_json: bool) -> None:
    """The steps of a run, the report's main numbers, and where they lie."""
    rows = [(s.name, s.stage, s.status, show.seconds(s.seconds)) for s in result.steps]
    show.table("", ("step", "stage", "", ">time"), rows)
    if result.report is not None:
        show_report(read_json(result.report))
        show.note(f"report: {result.report.with_suffix('.html')}")
    show.note(f"run: {result.folder}  ({show.seconds(result.seconds)})")
    if as_json:
        show.document(result.as_document())


def show_report(report: Mapping[str, Any]) -> None:
    """The main numbers of a report.json, one line per candidate."""
    rows = []
    for each in report["candidates"]:
        quality = each["quality"]
        real = [cell for cell in each["latency"] if cell["load"] == "real"] or each["latency"]
        first = min(real, key=lambda cell: cell["batch"], default=None)
        rows.append(
            (
                each["name"],
                *(f"{quality[m]:.4f}" if m in quality else "" for m in ("hr@10", "ndcg@10")),
                f"{each['body_parameters']:,}" if "body_parameters" in each else "",
                show.size(each.get("size_bytes")),
                f"{first['p50_ms']:.2f} ms" if first else "",
            )
        )
    columns = ("candidate", ">hr@10", ">ndcg@10", ">body parameters", ">size", ">one user (p50)")
    show.table(f"{report['dataset']['name']}, {report['evaluation']['split']}", columns, rows)


def show_plan(plan: "Plan", as_json: bool) -> None:
    """The plan: order, cached or why not, what it will cost, what is missing."""
    rows = [
        (
            step.name,
            step.stage,
            show.reason(None if step.cached else step.why),
            show.seconds(step.seconds),
            show.size(step.memory_bytes),
            show.size(step.disk_bytes),
            step.basis,
        )
        for step in plan.steps
    ]
    show.table(
        f"plan of {plan.recipe} in {plan.folder}, on {plan.device}",
        ("step", "stage", "", ">time", ">memory", ">disk", "time from"),
        rows,
    )
    for line in plan.notes:
        show.note(line)
    for line in plan.missing:
        show.note(f"missing: {line}", "red")
    if as_json:
        show.document(plan.as_document())
