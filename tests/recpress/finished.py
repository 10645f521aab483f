"""A recipe that has run to its end, and the JSON that a command printed last."""

import json
from pathlib import Path
from typing import Any

import pytest

from recpress.cli.app import main


def finished(folder: Path, recipe: str, cache: Path) -> Path:
    """The folder, with the recipe in it and its run in `folder/run`."""
    (folder / "recipe.yaml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECPRESS_CACHE", str(cache))
        command = ["run", str(folder / "recipe.yaml"), "--device", "cpu", "--out", str(folder / "run")]
        assert main(command) == 0
    return folder


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])
