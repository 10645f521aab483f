"""The real stages, tiny: from a log to an artifact that recommends, and what is refused along the way."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from export.runtime import Artifact
from recommender.files import read_json
from recpress.cli.app import main

RECIPE = """
name: tiny
data: {source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}
evaluation: {ks: [1, 5, 10]}
stages:
  - stage: train
    as: teacher
    model: {kind: llm, layers: 2, hidden: 16, heads: 2, item_dim: 16}
    epochs: 1
  - {stage: prune-depth, of: teacher, as: pruned, keep: 1}
  - {stage: distill, of: pruned, teacher: teacher, as: student, blocks: 1, weights: {ms: 0}, epochs: 1}
  - {stage: export, of: student, as: student-onnx, variants: [fast], top_k: 10, parity: {users: 16}}
  - stage: bench
    compare: [teacher, pruned, student, student-onnx]
    batch_sizes: [1, 4]
    rounds: 3
    latency_seconds: 2
    draws: 200
    threads: 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run of the tiny recipe in `home/run`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECPRESS_CACHE", str(cache_of_session))
        assert main(["run", str(folder / "tiny.yaml"), "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_run_ends_with_a_report_and_an_artifact(home: Path) -> None:
    report = read_json(home / "run/report.json")
    names = ["teacher", "pruned", "student", "student-onnx"]
    assert [each["name"] for each in report["candidates"][:4]] == names
    student, artifact, other = report["candidates"][2:]
    assert {artifact["variant"], other["variant"]} == {"fp32", "fast"}
    assert other["name"] == f"student-onnx:{other['variant']}"
    assert student["quality"]["ndcg@10"] == pytest.approx(artifact["quality"]["ndcg@10"], abs=1e-3)
    assert student["body_parameters"] < report["candidates"][0]["body_parameters"]
    assert "tiny" in (home / "run/report.md").read_text()
    assert (home / "run/artifacts/student-onnx/card.md").exists()


def test_the_same_command_runs_nothing_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(home / "tiny.yaml"), "--device", "cpu", "--out", str(home / "run"), "--json"]
    assert main(command) == 0
    assert {stage["status"] for stage in last_json(capsys)["stages"]} == {"cached"}


def test_recommend_prints_titles_and_leaves_out_what_is_known(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = str(home / "run/artifacts/student-onnx")
    assert main(["recommend", artifact, "--history", "i00000, i00001", "-k", "5", "--json"]) == 0
    captured = capsys.readouterr()
    items = json.loads(captured.out.splitlines()[-1])["items"]
    assert len(items) == 5 and not {"i00000", "i00001"} & {item["item_id"] for item in items}
    assert items[0]["title"] in captured.err


def test_an_unknown_item_is_refused_with_the_nearest(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(home / "run/artifacts/student-onnx")
    assert main(["recommend", artifact, "--history", "i00000x"]) == 2
    assert "i00000" in capsys.readouterr().err


def test_a_whole_artifact_is_verified(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(home / "run/artifacts/student-onnx"), "--json"]) == 0
    assert last_json(capsys)["status"] == "whole"


@pytest.mark.parametrize("harm", ["truncated", "altered"])
@pytest.mark.parametrize("verb", ["verify", "recommend"])
def test_a_harmed_artifact_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str, verb: str
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(home / "run/artifacts/student-onnx", copy)
    graph = (copy / "catalogue-1/fp32.onnx").read_bytes()
    changed = graph[:100] if harm == "truncated" else graph[:-1] + bytes([graph[-1] ^ 1])
    (copy / "catalogue-1/fp32.onnx").write_bytes(changed)
    more = ["--history", "i00000"] if verb == "recommend" else []
    assert main([verb, str(copy), *more]) == 2
    assert "catalogue-1/fp32.onnx" in capsys.readouterr().err


def test_reports_are_made_anew(home: Path) -> None:
    page = home / "run/report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(home / "run")]) == 0
    assert page.read_text() == before


def test_a_verb_works_on_a_checkpoint_of_a_run(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(home / "run/stages/00-teacher/checkpoint")
    data = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
    command = ["prune-depth", teacher, "--data", data, "--out", str(tmp_path / "cut"), "--json"]
    assert main([*command, "--set", "keep=1"]) == 0
    assert Path(last_json(capsys)["stages"][0]["folder"], "checkpoint/model.safetensors").exists()
    assert main([*command, "--set", "keep=3"]) == 2
    assert "cannot keep 3 of the 2 blocks of 'teacher'" in capsys.readouterr().err


def test_a_checkpoint_of_another_data_set_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(home / "run/stages/00-teacher/checkpoint")
    command = [
        "prune-depth",
        teacher,
        "--data",
        "synthetic",
        "--set",
        "keep=1",
        "--out",
        str(tmp_path / "cut"),
    ]
    assert main(command) == 2
    assert "another data set" in capsys.readouterr().err
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.time_resolution=86400", "on other histories"),
        ("evaluation.split={temporal: 0.8}", "with another split"),
    ],
)
def test_a_checkpoint_that_may_know_what_is_held_out_is_refused(
    setting: str, told: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "teacher"
    shutil.copytree(home / "run/stages/00-teacher/checkpoint", checkpoint)
    data = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
    command = ["prune-depth", str(checkpoint), "--data", data, "--set", "keep=1", "--device", "cpu"]

    def go(name: str, *sets: str) -> int:
        return main([*command, "--out", str(tmp_path / name), *(part for s in sets for part in ("--set", s))])

    assert go("same") == 0
    assert go("other", setting) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "other").exists()
    config = read_json(checkpoint / "config.json")
    for entry in ("digest", "split"):  # as checkpoints were before they noted what they were trained on
        del config["data"][entry]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert go("older", setting) == 0


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.time_resolution=86400", "artifact was trained on other histories"),
        ("evaluation.split={temporal: 0.8}", "artifact was trained with another split"),
    ],
)
def test_an_artifact_that_may_know_what_is_held_out_is_refused(
    setting: str, told: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "given.yaml"
    recipe.write_text(
        "name: given\ndata: {source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}\n"
        "evaluation: {ks: [1, 5]}\n"
        f"inputs: {{one: {home}/run/artifacts/student-onnx, two: {home}/run/artifacts/student-onnx}}\n"
        "stages: [{stage: bench, compare: [one, two], batch_sizes: [1], rounds: 10, latency_seconds: 1}]\n"
    )
    command = ["run", str(recipe), "--out", str(tmp_path / "run")]
    assert main([*command, "--dry-run"]) == 0
    assert "missing" not in capsys.readouterr().err
    assert main([*command, "--set", setting]) == 2
    assert told in capsys.readouterr().err


def test_blocks_that_do_not_divide_are_refused_before_anything_runs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(home / "tiny.yaml"), "--out", str(tmp_path / "run")]
    assert main([*command, "--set", "stages.student.blocks=2", "--set", "stages.student.weights.ms=1"]) == 2
    assert "2 does not divide the 1 blocks of 'pruned'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_suffix_with_all_positions_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    sets = ["--set", "stages.teacher.model={kind: llm, backbone: a/model, suffix: next item is}"]
    if stage == "student":
        sets += ["--set", "stages.teacher.positions=last"]
    assert main(["run", str(home / "tiny.yaml"), "--out", str(tmp_path / "run"), *sets]) == 2
    told = capsys.readouterr().err
    assert "positions" in told and "suffix" in told
    assert not (tmp_path / "run").exists()


def test_the_catalogue_of_an_artifact_is_swapped_and_put_back(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(home / "run/artifacts/student-onnx", copy)
    opened = Artifact(copy)
    frame = pl.DataFrame({"item_id": list(opened.item_ids), "vector": opened.table[1:].tolist()})
    new = frame.head(1).with_columns(pl.lit("fresh").alias("item_id"))
    pl.concat([frame, new]).write_parquet(tmp_path / "new.parquet")
    pl.DataFrame({"item_id": ["fresh"], "title": ["A new one"]}).write_csv(tmp_path / "titles.csv")
    command = ["refresh-items", str(copy), "--vectors", str(tmp_path / "new.parquet"), "--json"]
    assert main([*command, "--titles", str(tmp_path / "titles.csv")]) == 0
    told = last_json(capsys)
    assert (told["version"], told["items"], told["changed"], told["added"]) == (2, len(frame) + 1, 0, 1)
    assert main(["recommend", str(copy), "--history", "fresh", "-k", "5"]) == 0
    assert main(["verify", str(copy)]) == 0
    assert Artifact(copy).titles[-1] == "A new one"
    frame.head(20).write_parquet(tmp_path / "few.parquet")
    assert main(["refresh-items", str(copy), "--vectors", str(tmp_path / "few.parquet")]) == 2
    assert "--withdraw-missing" in capsys.readouterr().err
    for more in (["--withdraw-missing"], ["--titles", str(tmp_path / "titles.csv")], ["--items", "map.csv"]):
        assert main(["refresh-items", str(copy), "--restore", "1", *more]) == 2
        assert "say --restore 1 alone" in capsys.readouterr().err
    assert Artifact(copy).version == 2
    assert main(["refresh-items", str(copy), "--restore", "1"]) == 0
    assert main(["recommend", str(copy), "--history", "fresh"]) == 2


def test_vectors_without_ids_need_a_map(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(home / "run/artifacts/student-onnx", copy)
    opened = Artifact(copy)
    np.save(tmp_path / "new.npy", opened.table * 2)
    command = ["refresh-items", str(copy), "--vectors", str(tmp_path / "new.npy")]
    assert main(command) == 2
    assert "which row of the table is which item" in capsys.readouterr().err
    rows = pl.DataFrame({"index": range(1, opened.n_items + 1), "item_id": list(opened.item_ids)})
    rows.reverse().write_csv(tmp_path / "map.csv")
    assert main([*command, "--items", str(tmp_path / "map.csv"), "--json"]) == 0
    assert last_json(capsys)["changed"] == opened.n_items
    np.testing.assert_array_equal(Artifact(copy).table, opened.table * 2)
