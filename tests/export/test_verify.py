import json
from pathlib import Path

import pytest

from export.verify import verify_artifact
from recommender.errors import GateError, InputError
from tests.export.fixtures import perturb, reseal


def test_an_untouched_artifact_is_verified(exported: Path) -> None:
    found = verify_artifact(exported)
    assert "catalogue-1/fp32.onnx" in found.files and "manifest.json" not in found.files
    assert found.requests > 1 and found.max_score_difference < 1e-4
    assert found.unlisted == ()


def test_files_that_no_digest_covers_are_told(folder: Path) -> None:
    (folder / "card.md").write_text("measured")
    (folder / "extra.txt").write_text("who put this here?")
    assert verify_artifact(folder).unlisted == ("extra.txt",)


def test_an_altered_file_is_an_input_error(folder: Path) -> None:
    (folder / "catalogue-1/items.parquet").write_bytes(
        b"x" * (folder / "catalogue-1/items.parquet").stat().st_size
    )
    with pytest.raises(InputError, match=r"items\.parquet was altered"):
        verify_artifact(folder)


def test_a_graph_that_answers_otherwise_fails_although_its_digests_hold(folder: Path) -> None:
    perturb(folder / "catalogue-1/fp32.onnx", scale=0.05)
    reseal(folder)
    with pytest.raises(GateError, match="golden request 0"):
        verify_artifact(folder)


@pytest.mark.parametrize("change", ["shorter", "swapped", "unknown"])
def test_golden_answers_are_compared_by_place_and_by_item(folder: Path, change: str) -> None:
    golden = json.loads((folder / "catalogue-1/golden.json").read_text())
    request = golden["requests"][0]
    match change:
        case "shorter":
            request["items"], request["scores"] = request["items"][:-1], request["scores"][:-1]
        case "swapped":
            request["items"][:2] = request["items"][1::-1]
        case "unknown":
            request["history"] = ["nonsense"]
    (folder / "catalogue-1/golden.json").write_text(json.dumps(golden))
    reseal(folder)
    with pytest.raises(InputError if change == "unknown" else GateError, match="golden request 0"):
        verify_artifact(folder)
