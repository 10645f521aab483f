"""Where things lie: the built-in recipes and the run folder."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from recommender.errors import InputError

SEEDS = (42,)
"""The seeds of a recipe that names none."""

SEED = "{seed}"
"""Stands for the seed in the path of an input."""


def of_seed(path: Path, seed: int | None) -> Path:
    """The folder of an input for one seed; None: one that all seeds share."""
    return path if seed is None else Path(str(path).replace(SEED, str(seed)))


def recipes_folder() -> Path:
    """The built-in recipes: `recpress/recipes` in an installed wheel, `recipes/` beside us in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "recipes"
    return installed if installed.is_dir() else here.parent / "recipes"


def check_run_folder(folder: Path, recipe_name: str, *, fresh: bool) -> None:
    """Refuse a folder that is not ours to write. Raises InputError; writes nothing."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, not a run folder", where=str(folder), fix="choose another --out")
    if not folder.exists() or all(entry.name.startswith(".") for entry in folder.iterdir()):
        return  # new, or a run was killed before it had written anything
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        raise InputError(
            "is not empty and not a run folder", where=str(folder), fix="choose another folder with --out"
        )
    try:
        name = str(yaml.safe_load(recipe.read_text(encoding="utf-8"))["name"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        name = "unreadable"
    if not fresh and name != recipe_name:
        raise InputError(
            f"holds a run of another recipe (name: {name})",
            where=str(folder),
            fix="choose another folder with --out, or replace that run with --fresh",
        )


def check_inputs_outside(folder: Path, inputs: Mapping[tuple[str, int | None], Path]) -> None:
    """Refuse a run folder that holds what the run is to read: it would be written over. Raises InputError."""
    for (name, _), path in inputs.items():
        if path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"the input {name!r} lies inside the run folder, which this run would write",
                where=str(path),
                fix="choose another folder with --out",
            )
