"""Inputs that differ by seed: `{seed}` in a path stands for the seed."""

import shutil
from pathlib import Path

import pytest

from recommender.errors import InputError
from recommender.files import read_json, write_json
from tests.recpress.fakes import RECIPE
from tests.recpress.test_runner import go, why

SEEDED = RECIPE + "seeds: [1, 2]\n"


def given(tmp_path: Path) -> str:
    """A recipe that weighs the artifacts that an earlier run made, one per seed."""
    go(tmp_path, SEEDED)
    shutil.move(tmp_path / "run", tmp_path / "earlier")
    head = RECIPE.split("stages:")[0]
    inputs = "inputs: {given: 'earlier/artifacts/packed-seed{seed}'}"
    return f"{head}seeds: [1, 2]\n{inputs}\nstages: [{{stage: weigh, compare: [given]}}]\n"


def test_each_seed_reads_its_own_folder(tmp_path: Path) -> None:
    go(tmp_path, given(tmp_path))
    seen = read_json(tmp_path / "run" / "report.json")["seen"]
    assert set(seen) == {"1", "2"}
    record = read_json(tmp_path / "run" / "stages" / "00-weigh" / "stage.json")
    assert set(record["parts"]["inputs"]) == {"given (seed 1)", "given (seed 2)"}
    assert len(set(record["parts"]["inputs"].values())) == 2


def test_another_folder_of_one_seed_runs_the_stage_again(tmp_path: Path) -> None:
    text = given(tmp_path)
    go(tmp_path, text)
    manifest = tmp_path / "earlier" / "artifacts" / "packed-seed2" / "manifest.json"
    write_json(manifest, {**read_json(manifest), "name": "changed"})
    assert "given (seed 2)" in str(why(go(tmp_path, text))["00-weigh"])


def test_a_seed_without_its_folder_is_named(tmp_path: Path) -> None:
    text = given(tmp_path)
    shutil.rmtree(tmp_path / "earlier" / "artifacts" / "packed-seed2")
    with pytest.raises(InputError, match=r"packed-seed2: no such checkpoint"):
        go(tmp_path, text)
