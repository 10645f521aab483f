"""Two days of one shop: yesterday's teacher and student go on with today's log, through recipes."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recommender.checkpoint import read_info
from recommender.files import read_json
from recpress.cli.app import main

YESTERDAY = """
name: yesterday
data: {interactions: yesterday.csv, max_length: 8}
evaluation: {ks: [1, 10]}
stages:
  - stage: train
    as: teacher
    model: {kind: llm, layers: 2, hidden: 16, heads: 2, item_dim: 8, dropout: 0.0}
    epochs: 8
    batch_size: 16
    learning_rate: 1e-2
  - {stage: prune-depth, of: teacher, as: pruned, keep: 1}
  - {stage: distill, of: pruned, teacher: teacher, as: student, blocks: 1, weights: {ms: 0}, epochs: 1}
"""
TODAY = """
name: today
data: {interactions: today.csv, max_length: 8, item_seed: 5}
evaluation: {ks: [1, 10]}
inputs:
  old-teacher: yesterday/stages/00-teacher/checkpoint
  old-student: yesterday/stages/02-student/checkpoint
stages:
  - {stage: adapt, of: old-teacher, as: teacher-start}
  - {stage: adapt, of: old-student, as: student-start}
  - {stage: train, start_from: teacher-start, as: teacher, epochs: 1, learning_rate: 5e-4}
  - {stage: distill, of: student-start, teacher: teacher, as: student, blocks: 1, weights: {ms: 0}, epochs: 1}
"""


def write_day(file: Path, items: int, users: int) -> None:
    """Users who walk around a ring of items; today has more of both."""
    walks = [
        {"user_id": f"u{user}", "item_id": f"p{(7 * user + step) % items}", "position": step}
        for user in range(users)
        for step in range(5 + user % 3)
    ]
    pl.DataFrame(walks).write_csv(file)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """Both days' logs and recipes; yesterday's has been run."""
    folder = tmp_path_factory.mktemp("shop")
    write_day(folder / "yesterday.csv", items=18, users=50)
    write_day(folder / "today.csv", items=22, users=70)
    (folder / "yesterday.yaml").write_text(YESTERDAY)
    (folder / "today.yaml").write_text(TODAY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECPRESS_CACHE", str(cache_of_session))
        assert go("yesterday", folder) == 0
    return folder


def go(recipe: str, folder: Path, *options: str) -> int:
    command = ["run", str(folder / f"{recipe}.yaml"), "--device", "cpu", "--out", str(folder / recipe)]
    return main([*command, *options])


def stage(folder: Path, name: str) -> Any:
    return read_json(folder / "today/stages" / name / "stage.json")["metrics"]


def test_teacher_and_student_go_on(home: Path) -> None:
    assert go("today", home, "--dry-run") == 0
    assert go("today", home) == 0
    for name in ("00-teacher-start", "01-student-start"):
        metrics = stage(home, name)
        assert [metrics[f"items_{what}"] for what in ("kept", "new", "vanished")] == [18, 4, 0]
    teacher = stage(home, "02-teacher")
    assert teacher["history"][0]["valid ndcg@10"] == stage(home, "00-teacher-start")["ndcg@10"] > 0.1
    assert teacher["best_ndcg"] >= teacher["history"][0]["valid ndcg@10"]
    assert read_info(home / "today/stages/03-student/checkpoint").n_items == 22
    assert stage(home, "03-student")["teacher_ndcg"] == pytest.approx(teacher["best_ndcg"])


@pytest.mark.parametrize(
    "entry",
    [
        "{stage: train, start_from: old-teacher, as: further, epochs: 1}",
        "{stage: prune-depth, of: old-teacher, as: pruned, keep: 1}",
    ],
)
def test_only_adapt_reads_a_checkpoint_of_another_catalogue(
    entry: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "wrong.yaml").write_text(TODAY.replace("name: today", "name: wrong") + f"  - {entry}\n")
    assert go("wrong", home) == 2
    assert "belongs to another data set" in capsys.readouterr().err
    assert not (home / "wrong").exists()


def test_the_recipe_of_the_guide_is_right(home: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/warm-start.md").read_text()
    recipe = page.split("```yaml\n")[1].split("```")[0]
    recipe = recipe.replace("runs/yesterday", "yesterday").replace("blocks: 4", "blocks: 1, weights: {ms: 0}")
    (home / "guide.yaml").write_text(recipe)
    assert main(["recipes", "check", str(home / "guide.yaml")]) == 0


def test_the_stage_alone_adapts_a_folder(home: Path) -> None:
    command = ["adapt", str(home / "yesterday/stages/02-student/checkpoint"), "--device", "cpu"]
    data = ["--data", str(home / "today.csv"), "--set", "data.max_length=8", "--set", "new_items=fresh"]
    assert main([*command, *data, "--out", str(home / "alone")]) == 0
    (made,) = (home / "alone/stages").glob("*/checkpoint")
    assert read_info(made).n_items == 22
