"""`recpress lint`: exit codes, the table for people, the document for programs."""

import json
from pathlib import Path

import onnx
import pytest

from recpress.cli.app import main
from tests.export.lint.violations import VIOLATIONS, clean


def written(rule: str | None, folder: Path) -> str:
    onnx.save(VIOLATIONS[rule]().model if rule else clean(), folder / "tiny.onnx")
    return str(folder / "tiny.onnx")


def test_a_clean_graph_leaves_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", written(None, tmp_path), "--target", "tensorrt", "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out.splitlines()[-1])
    assert document["status"] == "clean" and document["findings"] == []
    assert "0 errors, 0 warnings" in told.err


def test_an_error_leaves_with_1_and_is_told_to_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", written("top-k-limit", tmp_path), "--json"]) == 1
    told = capsys.readouterr()
    document = json.loads(told.out.splitlines()[-1])
    assert document["status"] == "refused" and document["exit_code"] == 1
    finding = document["findings"][0]
    assert finding["rule"] == "top-k-limit" and "3841" in finding["text"] and finding["fix"]
    assert "top-k-limit" in told.err and "1 error, 0 warnings" in told.err


def test_a_warning_alone_leaves_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", written("is-nan", tmp_path)]) == 0
    assert "0 errors, 1 warning" in capsys.readouterr().err


def test_a_promise_and_profiled_axes_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(None, tmp_path)
    assert main(["lint", path, "--precision", "fp16"]) == 1
    assert main(["lint", path, "--profiled", "length"]) == 1
    assert main(["lint", path, "--profiled", " batch , length"]) == 0
    assert "precision" in capsys.readouterr().err


def test_a_graph_is_held_against_a_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written("parser-version", tmp_path)
    assert main(["lint", path, "--tensorrt", "10.12"]) == 1
    assert main(["lint", path, "--tensorrt", "10.15.1"]) == 0
    assert main(["lint", path]) == 0
    assert main(["lint", path, "--tensorrt", "newest"]) == 2
    assert "'newest' is no version" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["no.onnx"], ["text.onnx"], ["text.onnx", "--variant", "fast"], ["."]])
def test_what_is_no_graph_leaves_with_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    assert main(["lint", *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "failed"


def test_a_wrong_target_or_precision_leaves_with_2(tmp_path: Path) -> None:
    path = written(None, tmp_path)
    assert main(["lint", path, "--target", "tpu"]) == 2
    assert main(["lint", path, "--precision", "fp12"]) == 2
