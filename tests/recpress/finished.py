"""A recipe that has run to its end, a built-in one made tiny, and the JSON that a command printed last."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from recpress.cli.app import main
from recpress.folders import recipes_folder


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


def tiny(name: str) -> dict[str, Any]:
    """A built-in recipe as it is, but for data, sizes, epochs and limits; `finished` takes its YAML."""
    recipe: dict[str, Any] = yaml.safe_load((recipes_folder() / f"{name}.yaml").read_text())
    recipe["data"] = {"source": "synthetic", "synthetic": {"users": 120, "items": 60}, "max_length": 8}
    recipe["evaluation"] = {"ks": [1, 5, 10]}
    for stage in recipe["stages"]:
        if stage["stage"] in ("train", "distill"):
            stage |= {"epochs": 1}
        if stage["stage"] == "train":
            stage["model"] = {"kind": "llm", "layers": 8, "hidden": 16, "heads": 2, "item_dim": 16}
        if stage["stage"] == "export":
            stage |= {"top_k": 10, "parity": {"users": 16, "max_ndcg_change": 0.05}}
        if stage["stage"] == "bench":
            stage |= {"batch_sizes": [1], "latency_seconds": 1, "rounds": 3, "draws": 100, "aa": False}
    return recipe


def checkpoint(run: Path, name: str) -> Path:
    """The checkpoint that a run binds to a name."""
    (folder,) = run.glob(f"stages/*-{name}")
    return folder / "checkpoint"
