"""Runs of the fake recipe, and what they left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recpress.recipe import load_recipe
from recpress.runner import RunResult, Settings, run
from tests.recpress.fakes import FAKES, RECIPE


class Events:
    """Records what the runner and the stages report."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        self.seen.append((event, dict(values)))


def go(
    tmp_path: Path, text: str = RECIPE, *sets: str, fresh: bool = False, progress: Events | None = None
) -> RunResult:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    loaded = load_recipe(file, sets, stages=FAKES)
    settings = Settings(fresh=fresh, progress=progress or Events(), command="recpress run recipe.yaml")
    return run(loaded, tmp_path / "run", settings, stages=FAKES)


def ran(result: RunResult) -> list[str]:
    return [step.name for step in result.steps if step.status == "done"]


def why(result: RunResult) -> dict[str, str | None]:
    return {step.name: step.why for step in result.steps if step.status == "done"}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
