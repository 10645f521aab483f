"""From a log to a model repository: made once, found again, mended when it is damaged; the stage alone."""

from pathlib import Path

import pytest

from recommender.files import read_json
from recpress.cli.app import main
from tests.recpress.finished import finished, last_json

pytestmark = pytest.mark.slow

DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
RECIPE = f"""
name: tiny
data: {DATA}
evaluation: {{ks: [1, 5, 10]}}
stages:
  - {{stage: train, as: student, model: {{kind: sasrec, layers: 1, hidden: 16}}, epochs: 1}}
  - {{stage: export, of: student, as: student-onnx, top_k: 10, variants: [fp16], parity: {{users: 16}}}}
  - stage: export
    of: student-onnx
    as: student-triton
    format: triton
    triton: {{variants: [fp32, fp16]}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run of the tiny recipe in `home/run`."""
    return finished(tmp_path_factory.mktemp("home"), RECIPE, cache_of_session)


def go(home: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str | None]]:
    command = ["run", str(home / "recipe.yaml"), "--device", "cpu", "--out", str(home / "run"), "--json"]
    assert main(command) == 0
    return [(step["status"], step["why"]) for step in last_json(capsys)["stages"]]


def test_the_repository_lies_with_the_artifacts_and_is_whole(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "run/artifacts/student-triton"
    assert main(["verify", str(folder), "--json"]) == 0
    assert last_json(capsys)["replayed"] == ["student-triton", "student-triton-fp16"]
    assert read_json(folder / "repository.json")["of"] == "student-onnx"
    record = read_json(home / "run/stages/02-student-triton/stage.json")
    assert record["artifact"]["mark"] == "repository.json"


def test_it_is_found_again_and_made_again_when_a_file_is_cut(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [status for status, _ in go(home, capsys)] == ["cached"] * 3
    (home / "run/artifacts/student-triton/golden.json").write_text("{}")
    assert go(home, capsys)[2] == ("done", "artifacts/student-triton/golden.json is missing or cut")
    assert main(["verify", str(home / "run/artifacts/student-triton")]) == 0


def test_the_stage_alone_makes_a_repository_of_an_artifact(home: Path, tmp_path: Path) -> None:
    artifact = home / "run/artifacts/student-onnx"
    command = ["export", str(artifact), "--data", DATA, "--out", str(tmp_path / "alone"), "--device", "cpu"]
    assert main([*command, "--set", "format=triton", "--set", "triton={name: shop, kind: gpu}"]) == 0
    config = (tmp_path / "alone/artifacts/export-result/models/shop/config.pbtxt").read_text()
    assert "KIND_GPU" in config
