"""One verb per stage: the stage alone, around folders that exist already."""

from collections.abc import Callable
from typing import Annotated

import typer

from recpress.cli import show
from recpress.cli.options import Device, DeviceOption, DryRun, Fresh, Json, Out, Sets
from recpress.cli.stage_options import option_rows
from recpress.stages import STAGES

EXAMPLES = {
    "train": "recpress train --data synthetic --set 'model={kind: sasrec}' --set epochs=3 --out runs/sasrec",
    "adapt": "recpress adapt runs/yesterday/stages/00-teacher/checkpoint --data synthetic --out runs/adapted",
    "import": "recpress import --data my-log.csv --set format=sasrec --set path=SASRec.safetensors "
    "--set items=item_map.csv",
    "prune-depth": "recpress prune-depth runs/a/stages/00-teacher/checkpoint --data synthetic --set keep=2",
    "sparsify": "recpress sparsify runs/a/stages/02-student/checkpoint --data synthetic "
    "--set method=wanda --set pattern=2:4",
    "prune-width": "recpress prune-width runs/a/stages/02-student/checkpoint --data synthetic --set ffn=0.5",
    "depth-profile": "recpress depth-profile runs/a/stages/00-teacher/checkpoint --data synthetic "
    "--set 'keep=[1, 2, 4]'",
    "distill": "recpress distill runs/a/stages/01-pruned/checkpoint "
    "--teacher runs/a/stages/00-teacher/checkpoint --data synthetic",
    "quantize": "recpress quantize runs/a/stages/02-student/checkpoint --data synthetic "
    "--set scheme=int8-dynamic",
    "export": "recpress export runs/a/stages/02-student/checkpoint --data synthetic --out runs/export",
    "bench": "recpress bench runs/a/stages/00-teacher/checkpoint runs/a/artifacts/student --data synthetic",
}


def help_of(name: str) -> str:
    """The help text of a stage's verb."""
    summary = STAGES[name].summary
    return (
        f"{summary[0].upper()}{summary[1:]}: the stage alone.\n\n"
        f"--options lists what can be --set.\n\nExample: {EXAMPLES[name]}"
    )


def verb(name: str) -> Callable[..., None]:
    """The command of a stage."""

    def command(
        checkpoints: Annotated[
            list[str] | None,
            typer.Argument(metavar="[CHECKPOINT]...", help="Folder to work on; NAME=FOLDER gives it a name."),
        ] = None,
        data: Annotated[
            str, typer.Option("--data", help="A named source, a log file, a folder, or a YAML section.")
        ] = "synthetic",
        teacher: Annotated[
            str | None, typer.Option("--teacher", metavar="FOLDER", help="Checkpoint to distil from.")
        ] = None,
        sets: Sets = None,
        out: Out = None,
        device: DeviceOption = Device.auto,
        dry_run: DryRun = False,
        fresh: Fresh = False,
        as_json: Json = False,
        options: Annotated[bool, typer.Option("--options", help="List the stage's options.")] = False,
    ) -> None:
        from recpress.cli.run import carry_out
        from recpress.single import single_stage

        if options:
            _show_options(name)
            return
        carry_out(
            lambda: single_stage(name, checkpoints or (), data=data, sets=sets or (), teacher=teacher),
            out, device, dry_run, fresh, as_json,
        )  # fmt: skip

    return command


def _show_options(name: str) -> None:
    rows = option_rows(STAGES[name].config_class())
    show.table(f"options of {name}", ("key", "type", "default", "what it is"), rows)
