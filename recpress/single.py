"""One stage alone: a recipe of one stage around folders that exist already."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recommender.data.config import DataConfig, Section
from recommender.errors import InputError
from recommender.files import read_json
from recpress.messages import NAME, RecipeError, problems_of
from recpress.places import Source, parse_value, source_of
from recpress.recipe import Loaded, Recipe, check_source, with_sets
from recpress.stages import STAGES, StageTable

SECTIONS = frozenset(Recipe.model_fields) - {"stages", "inputs", "variants", "name"}


def data_section(text: str) -> Any:
    """The `data:` of a recipe from one option: a source's name, a log file, a folder, or a YAML mapping."""
    path = Path(text).expanduser()
    if path.is_dir():
        named = {file.name.split(".")[0]: file for file in sorted(path.iterdir()) if file.is_file()}
        if log := named.get("interactions"):
            items = {"items": str(named["items"])} if "items" in named else {}
            return {"interactions": str(log), **items}
    if path.exists():
        return {"interactions": str(path)}
    value = parse_value(text, f"--data {text}")
    return {"source": value} if isinstance(value, str) else value


def single_stage(
    stage: str,
    checkpoints: Sequence[str],
    *,
    data: str,
    sets: Sequence[str] = (),
    teacher: str | None = None,
    stages: StageTable = STAGES,
) -> Loaded:
    """The checked recipe of one stage.

    `checkpoints` are folders, each with a name of its own in front (`NAME=FOLDER`) if one likes; `sets` go to
    the stage, or to the recipe's sections (`evaluation.ks=[10]`). Raises InputError with all that is wrong.
    """
    inputs = named_folders([*checkpoints, *([f"teacher={teacher}"] if teacher else [])])
    names = list(inputs)
    entry: dict[str, Any] = {"stage": stage}
    fields = stages[stage].config_class().model_fields
    if "as_" in fields and fields["as_"].is_required():
        entry["as"] = f"{stage}-result"
    profiles = [name for name in names if "profiles" in fields and _is_profile(inputs[name])]
    if profiles:
        entry["profiles"] = profiles
    if "compare" in fields:
        entry["compare"] = [name for name in names if name not in profiles]
    if "of" in fields and names:
        entry["of"] = names[0]
    if teacher:
        entry["teacher"] = "teacher"
    recipe = {"name": stage, "data": data_section(data), "inputs": inputs, "stages": [entry]}
    source = source_of(recipe, name=f"recpress {stage}", folder=Path.cwd())
    return check_source(_with_stage_sets(source, sets), stages=stages)


def _is_profile(folder: str) -> bool:
    return (Path(folder).expanduser() / "profile.json").is_file()


def named_folders(texts: Sequence[str]) -> dict[str, str]:
    """{name: folder} from `NAME=FOLDER` or plain folders, which are named after what a run called them."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not re.match(NAME, name):
            name, folder = _name_of(Path(text)), text
        if name in found:
            raise InputError(f"two folders are called {name!r}", where=text, fix="name them: NAME=FOLDER")
        found[name] = folder
    return found


def _name_of(folder: Path) -> str:
    record = folder.resolve().parent / "stage.json"
    document: Mapping[str, Any] = read_json(record) if record.is_file() else {}
    return str(
        document.get("name")
        or re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip(".-_")
        or "given"
    )


def _with_stage_sets(source: Source, sets: Sequence[str]) -> Source:
    for text in sets:
        place = "" if re.split(r"[.=]", text)[0].strip() in SECTIONS else "stages.0."
        source = with_sets(source, [text], prefix=place)
    return source


class _DataOnly(Section):
    """A recipe that has nothing but data."""

    data: DataConfig


def data_config(text: str, sets: Sequence[str] = ()) -> DataConfig:
    """The data section of one option, with values replaced (`max_length=20`). Raises RecipeError."""
    source = source_of({"data": data_section(text)}, name=f"data {text}", folder=Path.cwd())
    source = with_sets(source, sets, prefix="data.")
    try:
        return _DataOnly.model_validate(source.data).data
    except ValidationError as error:
        raise RecipeError(source, problems_of(error, _DataOnly, source.data)) from error
