"""Models of others in a recipe: imported, cut, distilled, exported, without a stage noticing where from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaModel

from recommender.files import read_json
from recpress.cli.app import main
from tests.recommender.incoming.public_sasrec import PublicSasrec

KNOWN = 60
DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
RECIPE = """
name: theirs
data: {source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}
evaluation: {ks: [1, 10]}
stages:
"""
IMPORTS = {
    "sasrec": "{stage: import, as: teacher, format: sasrec, path: theirs/sasrec.safetensors, "
    "items: theirs/map.csv, heads: 2}",
    "hf-decoder": "{stage: import, as: teacher, format: hf-decoder, path: theirs/llama, "
    "vectors: theirs/vectors.npy, items: theirs/map.csv, projections: theirs/maps.safetensors, lora: {r: 2}}",
    "item-vectors": "{stage: import, as: table, format: item-vectors, path: theirs/vectors.npy, "
    "items: theirs/map.csv}",
}
COMPRESS = """
  - {stage: prune-depth, of: teacher, as: pruned, keep: 1}
  - {stage: distill, of: pruned, teacher: teacher, as: student, blocks: 1, weights: {ms: 0}, epochs: 1}
  - {stage: export, of: student, as: student-onnx, variants: [], top_k: 10, parity: {users: 16}}
  - {stage: export, of: teacher, as: teacher-onnx, variants: [], top_k: 10, parity: {users: 16}}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `theirs/`; the working directory is another one."""
    theirs = tmp_path / "home" / "theirs"
    theirs.mkdir(parents=True)
    torch.manual_seed(1)
    public = PublicSasrec("zeroed", items=KNOWN, hidden=16, maxlen=8, blocks=2, heads=2)
    save_file(public.state_dict(), theirs / "sasrec.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 4}
    LlamaModel(LlamaConfig(num_hidden_layers=2, **sizes)).save_pretrained(theirs / "llama")
    maps = {"input_proj.weight": torch.randn(16, 6), "score.weight": torch.randn(6, 16)}
    save_file(maps, theirs / "maps.safetensors")
    np.save(theirs / "vectors.npy", torch.randn(KNOWN + 1, 6).numpy())
    ids = [f"i{n:05d}" for n in range(KNOWN)]
    pl.DataFrame({"index": range(1, KNOWN + 1), "item_id": ids}).write_csv(theirs / "map.csv")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path / "home"


def recipe(home: Path, *stages: str) -> str:
    file = home / "recipe.yaml"
    file.write_text(RECIPE + "".join(f"  - {line}\n" for line in stages if line.startswith("{")))
    with file.open("a") as out:
        out.write("".join(line for line in stages if not line.startswith("{")))
    return str(file)


def go(command: list[str], out: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert main([*command, "--out", str(out), "--device", "cpu", "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("form", ["sasrec", "hf-decoder"])
def test_an_imported_model_is_cut_distilled_and_exported(
    form: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    go(["run", recipe(home, IMPORTS[form], COMPRESS)], out, capsys)
    first = read_json(out / "stages/00-teacher/stage.json")
    assert first["metrics"]["format"] == form and first["metrics"]["items_dropped"] >= 0
    assert read_json(out / "stages/01-pruned/checkpoint/config.json")["blocks"] == {"user": 1}
    for name in ("student", "teacher"):  # parity is the export's own gate
        assert (out / f"artifacts/{name}-onnx/manifest.json").exists()
    again = go(["run", str(home / "recipe.yaml")], out, capsys)
    assert {stage["status"] for stage in again["stages"]} == {"cached"}


def test_an_imported_table_is_exported_and_gives_item_vectors(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "{kind: llm, layers: 1, hidden: 16, heads: 2, item_vectors: frozen, items_from: table}"
    more = (
        f"  - {{stage: train, as: llm, model: {model}, epochs: 1}}\n"
        "  - {stage: export, of: table, as: table-onnx, variants: [], top_k: 10, parity: {users: 16}}\n"
    )
    out = tmp_path / "run"
    go(["run", recipe(home, IMPORTS["item-vectors"], more)], out, capsys)
    from recommender.checkpoint import load_checkpoint

    table, llm = (load_checkpoint(out / f"stages/{name}/checkpoint") for name in ("00-table", "01-llm"))
    assert torch.equal(table.item_table(), llm.item_table()) and table.item_table().shape[1] == 6


def test_a_changed_file_is_imported_again(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out = ["run", recipe(home, IMPORTS["item-vectors"])], tmp_path / "run"
    go(command, out, capsys)
    assert go(command, out, capsys)["stages"][0]["status"] == "cached"
    np.save(home / "theirs/vectors.npy", torch.ones(KNOWN + 1, 6).numpy())
    assert main([*command, "--out", str(out), "--device", "cpu"]) == 0
    assert "input 'path' changed" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["theirs/vectors.npy", "theirs/map.csv"])
def test_a_file_that_is_not_there_is_told_before_anything_runs(
    gone: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / gone).unlink()
    train = "{stage: train, as: first, model: {kind: popularity}}"
    command = ["run", recipe(home, train, IMPORTS["item-vectors"]), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert gone in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("{stage: prune-depth, of: table, as: pruned, keep: 1}", "no blocks"),
        ("{stage: distill, of: table, teacher: table, as: student}", "item-vectors, which has no hidden"),
        (
            "{stage: train, as: b, model: {kind: item-vectors}}",
            "is not trained: bring it in with the stage import",
        ),
    ],
)
def test_a_table_cannot_be_cut_or_trained(
    stage: str, told: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "check", recipe(home, IMPORTS["item-vectors"], stage)]) == 2
    assert told in capsys.readouterr().err


def test_what_a_foreign_sasrec_was_before_its_training_is_not_known(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = "{stage: prune-depth, of: teacher, as: pruned, keep: 1, init: base}"
    assert main(["run", recipe(home, IMPORTS["sasrec"], cut), "--out", str(tmp_path / "run")]) == 2
    assert "not known: the model was imported" in capsys.readouterr().err


def test_the_base_of_a_foreign_decoder_is_the_imported_body(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = "{stage: prune-depth, of: teacher, as: pruned, keep: [1], init: base}"
    go(["run", recipe(home, IMPORTS["hf-decoder"], cut)], tmp_path / "run", capsys)
    body = LlamaModel.from_pretrained(tmp_path / "run/stages/01-pruned/checkpoint/backbone")
    theirs = LlamaModel.from_pretrained(home / "theirs/llama")
    assert torch.equal(body.layers[0].mlp.up_proj.weight, theirs.layers[1].mlp.up_proj.weight)


def test_the_verb_imports_alone(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = {
        "format": "sasrec", "path": "theirs/sasrec.safetensors", "items": "theirs/map.csv", "heads": 2,
        "expect_ndcg": 0,
    }  # fmt: skip
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        told = go(["import", "--data", DATA, *words], tmp_path / "run", capsys)
    checkpoint = Path(told["stages"][0]["folder"], "checkpoint")
    go(["prune-depth", str(checkpoint), "--data", DATA, "--set", "keep=1"], tmp_path / "cut", capsys)


def test_a_gate_that_is_missed_leaves_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = IMPORTS["sasrec"].replace("heads: 2", "heads: 2, expect_ndcg: 0.99")
    assert main(["run", recipe(home, line), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 1
    assert "not the 0.99 that was expected" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("model.safetensors"))


def test_the_schema_knows_the_import(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "schema"]) == 0
    assert "expect_ndcg" in capsys.readouterr().out
