"""`recpress recipes`: look at the built-in recipes, copy one to edit, check your own."""

import json
from pathlib import Path
from typing import Annotated

import typer

from recommender.errors import InputError
from recommender.files import write_text
from recpress.cli import show
from recpress.cli.options import Json, Sets

app = typer.Typer(no_args_is_help=True, help="Built-in recipes, a copy to edit, a check of your own.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the built-in recipes.

    Example: recpress recipes list
    """
    from recpress.folders import recipes_folder
    from recpress.places import read_source

    found = []
    for file in sorted(recipes_folder().glob("*.yaml")):
        data = read_source(file).data
        stages = [str(stage["stage"]) for stage in data["stages"]]
        found.append({"name": file.stem, "description": data.get("description", ""), "stages": stages})
    show.table("", ("recipe", "what it does"), [(each["name"], each["description"]) for each in found])
    if as_json:
        show.document(found)


@app.command("show")
def show_(name: Annotated[str, typer.Argument(help="A built-in recipe, or a file.")]) -> None:
    """Print a recipe.

    Example: recpress recipes show quickstart
    """
    from recpress.recipe import find_recipe

    show.text(find_recipe(name).read_text(encoding="utf-8").rstrip())


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="A built-in recipe.")],
    target: Annotated[Path | None, typer.Argument(help="File to write; default: NAME.yaml here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Copy a built-in recipe to a file of your own.

    Example: recpress recipes copy slmrec my-recipe.yaml
    """
    from recpress.recipe import find_recipe

    source = find_recipe(name)
    file = target or Path(source.name)
    file = file / source.name if file.is_dir() else file
    if file.exists() and not force:
        raise InputError("is there already", where=str(file), fix="name another file, or add --force")
    write_text(file, source.read_text(encoding="utf-8"))
    show.note(f"{file}: edit it, then: recpress run {file}")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Example: recpress recipes schema > recipe.schema.json
    """
    from recpress.recipe import recipe_model

    document = recipe_model().model_json_schema(by_alias=True)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    show.text(json.dumps({**dialect, **document}, indent=2))


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Check a recipe: every key, value and name; reads no data and writes nothing.

    Example: recpress recipes check my-recipe.yaml
    """
    from recpress.recipe import load_recipe

    loaded = load_recipe(file, sets or ())
    steps = len(loaded.recipe.stages)
    show.note(f"{file} is right: {steps} stages, {len(loaded.variants)} variants", "green")
    if as_json:
        show.document({"status": "right", "recipe": loaded.recipe.resolved()})
