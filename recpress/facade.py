"""The library's way to run a recipe, without the command line."""

from collections.abc import Sequence
from pathlib import Path

from recommender.errors import InputError
from recommender.stage import Progress, silent
from recpress.device import resolve_device
from recpress.recipe import load_recipe
from recpress.runner import RunResult, Settings, run


def run_recipe(
    recipe: str | Path,
    *,
    sets: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress = silent,
) -> RunResult:
    """Run a recipe (file or built-in name) into a folder; the same call goes on where it stopped.

    `sets`: values replaced, `KEY=VALUE` each. `out`: default `runs/NAME`. `device`: auto, cpu or cuda. Raises
    InputError for whatever is wrong with the input, StageError or GateError when a stage fails.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {device!r} (valid: auto, cpu, cuda)", where="device")
    loaded = load_recipe(recipe, sets)
    folder = Path(out) if out is not None else Path("runs") / loaded.recipe.name
    settings = Settings(resolve_device(device), fresh=fresh, progress=progress, command="recpress.run_recipe")
    return run(loaded, folder, settings)
