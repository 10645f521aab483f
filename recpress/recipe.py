"""Recipes: one pydantic model per section, all errors at once, nothing imported by name from a file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, ValidationError, create_model, field_validator

from recommender.data.config import DataConfig, EvaluationConfig, Section
from recommender.errors import InputError, nearest
from recommender.stage import StageConfig
from recpress.anchoring import anchored
from recpress.checks import cross_checks
from recpress.folders import SEED, SEEDS, of_seed, recipes_folder
from recpress.messages import NAME, Problem, RecipeError, problems_of
from recpress.places import Override, Place, Source, parse_value, read_source
from recpress.stages import STAGES, StageTable


class Recipe(Section):
    """One recipe; `recipe_model` narrows `stages` to the stages of a table."""

    name: str = Field(pattern=NAME, description="name of the run and of its folder")
    description: str = Field("", description="one line for `recpress recipes list`")
    seeds: tuple[int, ...] = Field(
        SEEDS, min_length=1, description="every seeded stage runs once per seed; the report pools them"
    )
    data: DataConfig = Field(description="where the interaction log comes from")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="how ranking quality is measured"
    )
    inputs: dict[str, Path] = Field(
        default_factory=dict,
        description="names bound to checkpoint or artifact folders that exist already; `{seed}` in a path "
        "stands for the seed",
    )
    stages: tuple[StageConfig, ...] = Field(min_length=1, description="what is done, in this order")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description='{name: {"stages.2.method": none}}: the recipe again with values replaced',
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be different and not negative")
        return seeds

    def given(self) -> dict[tuple[str, int | None], Path]:
        """(name, seed) -> folder of every input; the seed is None where all seeds share one folder."""
        return {
            (name, seed): of_seed(path, seed)
            for name, path in self.inputs.items()
            for seed in (self.seeds if SEED in str(path) else (None,))
        }

    def resolved(self) -> dict[str, Any]:
        """All values, defaults included, as plain data; reading it back gives the same recipe."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Loaded:
    """A recipe that was checked, and its variants (recipes with values replaced)."""

    recipe: Recipe
    variants: Mapping[str, Recipe]

    def all(self) -> Iterator[tuple[str | None, Recipe]]:
        """The recipe itself (None) and each variant by name."""
        yield None, self.recipe
        yield from self.variants.items()


def recipe_model(stages: StageTable = STAGES) -> type[Recipe]:
    """The recipe whose stages are a union of the table's configs, told apart by `stage`."""
    classes = tuple(kind.config_class() for kind in stages.values())
    one: Any = Annotated[Union[classes], Field(discriminator="stage")] if len(classes) > 1 else classes[0]  # noqa: UP007
    field = Field(min_length=1, description="what is done, in this order")
    return create_model("Recipe", __base__=Recipe, stages=(tuple[one, ...], field))


def load_recipe(recipe: str | Path, sets: Sequence[str] = (), *, stages: StageTable = STAGES) -> Loaded:
    """Read a recipe file or a built-in recipe, replace values (`KEY=VALUE`), check all of it.

    Raises RecipeError (an InputError) that lists every problem with its line.
    """
    return check_source(with_sets(read_source(find_recipe(recipe)), sets), stages=stages)


def find_recipe(recipe: str | Path) -> Path:
    """The file of a path or of a built-in name. Raises InputError when it is neither."""
    path = Path(recipe)
    if path.is_file():
        return path
    built_in = {file.stem: file for file in recipes_folder().glob("*.yaml")}
    if str(recipe) in built_in:
        return built_in[str(recipe)]
    if path.is_dir():
        raise InputError("is a folder, not a recipe", where=str(path), fix="name the .yaml file in it")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise InputError("file not found", where=str(path))
    raise InputError(
        f"no built-in recipe and no file is called {str(recipe)!r}{nearest(str(recipe), built_in)}",
        fix="list them with: recpress recipes list",
    )


def with_sets(source: Source, sets: Sequence[str], *, prefix: str = "") -> Source:
    """Apply `--set KEY=VALUE`s in order, `prefix` before each key. Raises InputError for a wrong one."""
    for text in sets:
        key, equals, value = text.partition("=")
        label = f"--set {text}"
        if not equals or not key.strip():
            raise InputError("is not of the form KEY=VALUE", where=label)
        override = Override(label, Path.cwd())
        source = source.with_value(prefix + key.strip(), parse_value(value, label), override)
    return source


def check_source(source: Source, *, stages: StageTable = STAGES) -> Loaded:
    """Check a source and each of its variants. Raises RecipeError with all problems."""
    model = recipe_model(stages)
    recipe = _checked(source, model, stages)
    variants: dict[str, Recipe] = {}
    for name, values in recipe.variants.items():
        variants[name] = _checked(_variant(source, name, values), model, stages)
    return Loaded(recipe, variants)


def _variant(source: Source, name: str, values: Mapping[str, Any]) -> Source:
    for key, value in values.items():
        place = ("variants", name, key)
        override = Override(source.where(place), source.base(place))
        source = source.with_value(key, value, override)
    return replace(source, data={k: v for k, v in source.data.items() if k != "variants"})


def _checked(source: Source, model: type[Recipe], stages: StageTable) -> Recipe:
    problems: list[Problem] = []
    recipe: Recipe | None = None
    try:
        recipe = model.model_validate(anchored(source, model.model_validate(source.data), ()))
    except ValidationError as error:
        problems += problems_of(error, model, source.data)
    problems += cross_checks(source, stages)
    if problems or recipe is None:
        raise RecipeError(source, sorted(problems, key=lambda p: _order(source, p.place)))
    return recipe


def _order(source: Source, place: Place) -> tuple[int, tuple[str, ...]]:
    lines = [source.lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in source.lines]
    return (lines[0] if lines else 0, tuple(str(part) for part in place))
