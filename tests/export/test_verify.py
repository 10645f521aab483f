import json
from pathlib import Path
from types import ModuleType

import pytest

from export.artifact import open_artifact
from export.verify import (
    EIGHT_BIT_TOLERANCE,
    HALF_TOLERANCE,
    SCORE_TOLERANCE,
    replay,
    tolerance_of,
    verify_artifact,
)
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


def change(path: Path, **values: object) -> None:
    """Replace entries of a JSON document."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def call_the_engine(folder: Path, **values: object) -> None:
    """Change what the manifest says of the only engine of an artifact."""
    variants = json.loads((folder / "manifest.json").read_text())["variants"]
    engines = [entry | values if entry["name"].startswith("tensorrt") else entry for entry in variants]
    change(folder / "manifest.json", variants=engines)


def stretch_golden(folder: Path, factor: float) -> None:
    """Multiply the scores of all golden answers."""
    path = folder / "catalogue-1/golden.json"
    requests = json.loads(path.read_text())["requests"]
    for request in requests:
        request["scores"] = [factor * score for score in request["scores"]]
    change(path, requests=requests)
    reseal(folder)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        *((name, SCORE_TOLERANCE) for name in ("fp32", "fast", "scan-int8", "aot", "tensorrt-fp32")),
        *((name, HALF_TOLERANCE) for name in ("fp16", "bf16", "aot-bf16", "tensorrt-fp16", "tensorrt-bf16")),
        *((name, EIGHT_BIT_TOLERANCE) for name in ("tensorrt-int8", "tensorrt-fp8")),
    ],
)
def test_what_is_rounded_may_differ_by_as_much_as_it_is_rounded(name: str, tolerance: float) -> None:
    assert tolerance_of(name, "fast") == tolerance


@pytest.mark.parametrize("name", ["int8-body", "quantized", "qdq", "ann"])
def test_what_ranks_otherwise_is_refused_unless_the_answers_are_its_own(name: str) -> None:
    with pytest.raises(InputError, match=f"answers of fp32, and {name} ranks otherwise by design"):
        tolerance_of(name, "fp32")
    assert tolerance_of(name, name) == SCORE_TOLERANCE


@pytest.mark.parametrize(
    ("name", "passes", "fails"), [("tensorrt-fp16", 1.02, 1.1), ("tensorrt-int8", 1.1, 1.4)]
)
def test_the_golden_requests_are_replayed_by_engines(
    fake_trt: ModuleType, own_engine: Path, name: str, passes: float, fails: float
) -> None:
    """The engine computes in fp16; under which name decides how far it may be from the answers."""
    call_the_engine(own_engine, name=name)
    stretch_golden(own_engine, passes)
    found = verify_artifact(own_engine, variant=name)
    assert found.requests > 1 and found.max_score_difference > 0
    stretch_golden(own_engine, fails / passes)
    with pytest.raises(GateError, match="golden request 0"):
        verify_artifact(own_engine, variant=name)


def test_an_engine_for_shorter_histories_answers_those_that_it_reads_whole(
    fake_trt: ModuleType, own_engine: Path
) -> None:
    call_the_engine(own_engine, max_length=5)
    golden = json.loads((own_engine / "catalogue-1/golden.json").read_text())
    found = verify_artifact(own_engine, variant="tensorrt-fp16")
    assert 0 < found.requests < len(golden["requests"])
    with pytest.raises(GateError):  # of longer ones it reads the newest items only
        replay(open_artifact(own_engine, variant="tensorrt-fp16"), golden, HALF_TOLERANCE)
