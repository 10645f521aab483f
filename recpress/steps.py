"""A recipe laid out as steps: every stage, for every seed, for every variant, in the order they run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recommender.data.content import content_digest
from recommender.data.prepare import default_cache
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import digest_of, folder_digest, sha256_file
from recommender.stage import StageConfig
from recpress.anchoring import paths_in
from recpress.fingerprint import fingerprint, parts_of
from recpress.recipe import Loaded, Recipe
from recpress.stages import STAGES, StageKind, StageTable

Origin = tuple[str, int | None]
"""A bound name and its seed (None for what the recipe was given)."""


@dataclass(frozen=True)
class Step:
    """One stage with one seed (all seeds, for a stage that pools them) of one variant."""

    variant: str | None
    recipe: Recipe
    index: int
    config: StageConfig
    kind: StageKind
    seed: int | None  # None: pools all seeds
    folder: Path  # relative to the run folder
    artifact: Path  # where its artifact goes, if it makes one
    prepared: Prepared
    parts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`01-pruned`, `variants/ce/02-student-seed43`: for people."""
        return f"{self.variant}/{self.folder.name}" if self.variant else self.folder.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds whose results this step reads."""
        return self.recipe.seeds if self.seed is None else (self.seed,)

    @cached_property
    def fingerprint(self) -> str:
        """What its result hangs on."""
        return fingerprint(self.parts)


def lay_out(
    loaded: Loaded,
    prepare: Callable[[Recipe], Prepared],
    *,
    device: str,
    stages: StageTable = STAGES,
) -> list[Step]:
    """The steps of a recipe and its variants; `prepare` gives the data of a recipe.

    With one seed a stage's folder is `stages/NN-name`, with several `stages/NN-name-seedS` (one that pools
    the seeds keeps the plain name); those of a variant lie in `variants/NAME/`.
    """
    steps: list[Step] = []
    for variant, recipe in loaded.all():
        steps += _of_one(variant, recipe, prepare(recipe), device, stages)
    return steps


def _of_one(
    variant: str | None, recipe: Recipe, prepared: Prepared, device: str, stages: StageTable
) -> Iterator[Step]:
    top = Path("variants") / variant if variant else Path()
    made: dict[Origin, str] = {origin: given_digest(path) for origin, path in recipe.given().items()}
    for index, config in enumerate(recipe.stages):
        name = config.produces or config.stage
        for seed in (None,) if config.pools_seeds else recipe.seeds:
            seeds = recipe.seeds if seed is None else (seed,)
            suffix = f"-seed{seed}" if seed is not None and len(recipe.seeds) > 1 else ""
            parts = parts_of(
                stages[config.stage],
                config,
                inputs=dict(pair for s in seeds for pair in _inputs(config, made, s, len(seeds) > 1))
                | _read_by(config),
                prepared=prepared,
                max_length=recipe.data.max_length,
                evaluation=recipe.evaluation,
                seed=seeds if seed is None else seed,
                device=device,
            )
            step = Step(
                variant=variant,
                recipe=recipe,
                index=index,
                config=config,
                kind=stages[config.stage],
                seed=seed,
                folder=top / "stages" / f"{index:02d}-{name}{suffix}",
                artifact=top / "artifacts" / f"{name}{suffix}",
                prepared=prepared,
                parts=parts,
            )
            if config.produces:
                made[config.produces, seed] = step.fingerprint
            yield step


def _inputs(
    config: StageConfig, made: Mapping[Origin, str], seed: int, pooled: bool
) -> Iterator[tuple[str, str]]:
    for name in config.consumes:
        origin: Origin = (name, seed) if (name, seed) in made else (name, None)
        yield (f"{name} (seed {seed})" if pooled else name), made[origin]


def _read_by(config: StageConfig) -> dict[str, str]:
    """Digests of the files and folders that a stage's config names; a body on the hub is its name.

    Raises InputError for one that is not there.
    """
    return {
        ".".join(map(str, place)): _content(path, f"{config.stage}.{'.'.join(map(str, place))}")
        for place, path in paths_in(config, ())
        if place[-1] != "backbone" or path.is_dir()
    }


def _content(path: Path, where: str) -> str:
    memo = default_cache() / "digests"
    if not path.exists():
        raise InputError(f"no such file or folder: {path}", where=where)
    if path.is_file():
        return content_digest(path, memo)
    return digest_of(
        {f.relative_to(path).as_posix(): content_digest(f, memo) for f in path.rglob("*") if f.is_file()}
    )


def given_digest(folder: Path) -> str:
    """Digest of what a folder holds: of an artifact or a repository its manifest, of a run its report, else
    of every file.
    """
    for name in ("manifest.json", "repository.json", "report.json"):
        if (folder / name).is_file():
            return sha256_file(folder / name)
    return folder_digest(folder)
