"""Quantization in a recipe and alone: recorded, trained through, exported as recorded, refused in time."""

from pathlib import Path

import pytest

from recommender.files import read_json
from recommender.quantization_scheme import read_scheme
from recpress.cli.app import main
from tests.recpress.finished import finished, last_json

DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
RECIPE = f"""
name: tiny
data: {DATA}
evaluation: {{ks: [1, 5, 10]}}
stages:
  - stage: train
    as: teacher
    model: {{kind: llm, layers: 2, hidden: 16, heads: 2, item_dim: 16}}
    epochs: 1
  - {{stage: quantize, of: teacher, as: small, scheme: int4, group: 16, item_table: int8, sensitivity: true}}
  - {{stage: distill, of: small, teacher: teacher, as: student, method: logits, epochs: 1}}
  - stage: export
    of: student
    as: student-onnx
    variants: [quantized, qdq]
    top_k: 10
    parity: {{users: 16, max_ndcg_change: 0.05}}
  - stage: bench
    compare: [teacher, student, student-onnx]
    batch_sizes: [1]
    rounds: 2
    latency_seconds: 1
    draws: 100
    threads: 1
    aa: false
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run of the tiny recipe in `home/run`."""
    return finished(tmp_path_factory.mktemp("home"), RECIPE, cache_of_session)


def test_the_scheme_goes_from_stage_to_stage_into_the_artifact_and_the_report(home: Path) -> None:
    small, student = (home / f"run/stages/{name}/checkpoint" for name in ("01-small", "02-student"))
    assert read_scheme(small) == read_scheme(student) is not None
    manifest = read_json(home / "run/artifacts/student-onnx/manifest.json")
    entries = {entry["name"]: entry for entry in manifest["variants"]}
    assert entries["quantized"]["scheme"] == entries["qdq"]["scheme"] == "int4"
    report = read_json(home / "run/report.json")
    quality = {each["name"]: each["quality"]["ndcg@10"] for each in report["candidates"]}
    for name in ("student-onnx:quantized", "student-onnx:qdq"):
        assert quality[name] == pytest.approx(quality["student"], abs=1e-3)


def test_what_was_measured_stands_in_the_stage(home: Path) -> None:
    metrics = read_json(home / "run/stages/01-small/stage.json")["metrics"]
    assert len(metrics["sensitivity"]) == 14 and metrics["scheme"] == "int4"
    assert metrics["matrix_bytes"] < 0.5 * metrics["matrix_bytes_before"]


def test_the_verb_takes_the_scheme_that_a_stage_wrote_and_an_edit_runs_it_again(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(home / "run/stages/00-teacher/checkpoint")
    file = tmp_path / "mine.yaml"
    file.write_text((home / "run/stages/01-small/scheme.yaml").read_text())
    command = ["quantize", teacher, "--data", DATA, "--out", str(tmp_path / "one"), "--json"]
    command += ["--set", f"scheme={file}"]
    assert main(command) == 0
    (stage,) = last_json(capsys)["stages"]
    made = Path(stage["folder"], "checkpoint")
    assert read_scheme(made) == read_scheme(home / "run/stages/01-small/checkpoint")
    assert main(command) == 0
    assert last_json(capsys)["stages"][0]["status"] == "cached"
    file.write_text(file.read_text().replace("item_table: int8", "item_table: int4"))
    assert main(command) == 0
    assert last_json(capsys)["stages"][0]["status"] != "cached"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("scheme: int4, group: 16", "scheme: int8-dynamic", "the variant qdq cannot hold int8-dynamic"),
        ("scheme: int4, group: 16", "scheme: int4x", "no scheme 'int4x' (did you mean 'int4'?)"),
        ("scheme: int4, group: 16", "scheme: int4, group: 24", "cannot be 24 (valid: 16, 32, 64, 128, 256)"),
        ("scheme: int4, group: 16", "scheme: nf4", "nf4 cannot be trained through"),
        ("variants: [quantized, qdq]", "variants: [int8-body]", "int8-body would round it again"),
        ("variants: [quantized, qdq]", "variants: [tensorrt-fp8]", "tensorrt-fp8 would round it again"),
        ("of: student\n", "of: teacher\n", "'teacher' is not quantized, and quantized holds"),
        ("as: small, scheme", "as: smaller, scheme", "no earlier stage binds the name 'small'"),
        ("method: logits", "fake_quantize: true, method: logits", None),
    ],
)
def test_what_does_not_fit_together_is_told_before_anything_runs(
    before: str, after: str, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert before in RECIPE
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace(before, after, 1))
    assert main(["recipes", "check", str(tmp_path / "tiny.yaml")]) == (0 if message is None else 2)
    if message is not None:
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_given_quantized_checkpoint_is_known_as_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(home / "run/stages/01-small/checkpoint")
    for verb, option in (("prune-depth", "keep=1"), ("quantize", "scheme=int8-dynamic")):
        assert main([verb, small, "--data", DATA, "--out", str(tmp_path / verb), "--set", option]) == 2
        assert "quantized" in capsys.readouterr().err
        assert not (tmp_path / verb / "stages").exists()
