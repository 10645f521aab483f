"""`recpress verify` of a model repository: exit codes, and what people and programs are told."""

import json
from pathlib import Path

import pytest

from recpress.cli.app import main
from tests.export.triton.server import serving
from tests.recpress.finished import last_json


def test_a_whole_repository_leaves_with_0(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written), "--json"]) == 0
    document = last_json(capsys)
    assert document["status"] == "whole" and document["replayed"] == ["recommender"]


def test_a_server_that_answers_alike_leaves_with_0_and_one_that_is_down_with_1(
    written: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(written) as url:
        assert main(["verify", str(written), "--url", url]) == 0
    assert f"the server at {url} answered" in capsys.readouterr().err
    assert main(["verify", str(written), "--url", url, "--json"]) == 1
    assert "no server answers" in last_json(capsys)["error"]


def test_a_damaged_repository_and_a_wrong_address_leave_with_2(
    repository: Path,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", str(repository), "--url", "localhost:8000"]) == 2
    assert main(["verify", str(exported), "--url", "http://localhost:8000"]) == 2
    assert "no model repository" in capsys.readouterr().err
    (repository / "golden.json").write_text(json.dumps({}))
    assert main(["verify", str(repository)]) == 2
    assert "golden.json was altered" in capsys.readouterr().err
