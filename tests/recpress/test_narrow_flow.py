"""Depth, then width, then distillation, export and bench: the chain of the recipe slmrec-width, tiny."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.runtime import Artifact
from recommender.files import read_json
from recpress.cli.app import main
from tests.recpress.finished import finished

pytestmark = pytest.mark.slow  # a whole chain; its parts have tests of their own

DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
RECIPE = f"""
name: narrow
data: {DATA}
evaluation: {{ks: [1, 5, 10]}}
stages:
  - stage: train
    as: teacher
    model: {{kind: llm, family: qwen3, layers: 2, hidden: 16, heads: 4, kv_heads: 2, item_dim: 16}}
    epochs: 1
  - {{stage: prune-depth, of: teacher, as: pruned, keep: 1}}
  - {{stage: prune-width, of: pruned, as: narrow, ffn: 0.5, heads: 2, importance: taylor}}
  - {{stage: distill, of: narrow, teacher: teacher, as: student, blocks: 1, weights: {{ms: 0}}, epochs: 1}}
  - stage: export
    of: student
    as: student-onnx
    variants: [fast, int8-body]
    top_k: 10
    parity: {{users: 16, max_ndcg_change: 0.05}}
  - stage: bench
    compare: [teacher, narrow, student, student-onnx]
    batch_sizes: [1]
    rounds: 3
    latency_seconds: 1
    draws: 100
    threads: 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run in `home/run`."""
    return finished(tmp_path_factory.mktemp("home"), RECIPE, cache_of_session)


def alone(home: Path, out: Path, *sets: str) -> int:
    teacher = str(home / "run/stages/00-teacher/checkpoint")
    more = [part for each in sets for part in ("--set", each)]
    return main(["prune-width", teacher, "--data", DATA, "--out", str(out), "--json", *more])


def test_the_chain_ends_with_a_report_and_an_artifact_that_says_what_it_costs(home: Path) -> None:
    report = read_json(home / "run/report.json")
    sizes = {each["name"]: each["body_parameters"] for each in report["candidates"]}
    assert sizes["narrow"] == sizes["student"] < sizes["teacher"] / 2
    quality = {each["name"]: each["quality"]["ndcg@10"] for each in report["candidates"]}
    assert quality["student"] == pytest.approx(quality["student-onnx"], abs=1e-3)
    manifest = read_json(home / "run/artifacts/student-onnx/manifest.json")
    assert {each["name"] for each in manifest["variants"]} >= {"fp32", "fast", "int8-body"}
    shapes = {tuple(shape) for shape in manifest["variants"][0]["cost"]["shapes"]}
    assert shapes == {(16, 8), (8, 16), (16, 24), (24, 16)}
    assert Artifact(home / "run/artifacts/student-onnx").manifest["name"] == "student-onnx"


def test_the_record_says_what_went(home: Path) -> None:
    folder = home / "run/stages/02-narrow"
    metrics = read_json(folder / "stage.json")["metrics"]
    assert (metrics["width_before"]["heads"], metrics["width_after"]["heads"]) == (4, 2)
    assert metrics["width_after"]["ffn"] == 24 and 0.5 < metrics["importance_kept"]["ffn"][0] < 1
    kept = read_json(folder / "kept.json")
    assert [len(block["heads"]) for block in kept["blocks"]] == [2]


def test_the_verb_works_on_a_checkpoint_of_a_run(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert alone(home, tmp_path / "cut", "hidden=12") == 0
    document: Any = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = Path(document["stages"][0]["folder"])
    assert read_json(folder / "checkpoint/backbone/config.json")["hidden_size"] == 12
    assert read_json(folder / "checkpoint/config.json")["model"]["hidden"] == 12


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("ffn=500", "cannot keep 500: there are 48"),
        ("heads=3", "3 heads cannot be shared equally by 2 key/value heads"),
        ("importance=taylor", "nothing to cut"),
        ("fnn=3", "ffn"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    setting: str, told: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert alone(home, tmp_path / "cut", setting) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "cut").exists()


def test_the_base_of_a_narrow_body_is_refused_before_anything_runs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = str(home / "run/stages/02-narrow/checkpoint")
    command = ["prune-depth", narrow, "--data", DATA, "--set", "keep=1", "--set", "init=base"]
    assert main([*command, "--out", str(tmp_path / "cut")]) == 2
    assert "prune-width has cut this body" in capsys.readouterr().err and not (tmp_path / "cut").exists()


def test_slmrec_is_refused_where_the_plan_changes_the_hidden_size(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "hidden.yaml"
    recipe.write_text(RECIPE.replace("ffn: 0.5, heads: 2", "hidden: 12"))
    assert main(["recipes", "check", str(recipe)]) == 2
    assert "same hidden size" in capsys.readouterr().err
    assert main(["recipes", "check", str(recipe), "--set", "stages.student.method=logits"]) == 0
