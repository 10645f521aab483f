"""From a sparse student to an artifact: zeros stay exactly zero through distillation and export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from recommender.checkpoint import load_checkpoint, read_info
from recommender.files import read_json
from recommender.models.linears import body_linears
from recommender.models.zeros import is_2_to_4
from recpress.cli.app import main
from tests.recpress.finished import finished

pytestmark = pytest.mark.slow  # a whole chain; its parts have tests of their own

DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"
RECIPE = f"""
name: sparse
data: {DATA}
evaluation: {{ks: [1, 5, 10]}}
stages:
  - stage: train
    as: teacher
    model: {{kind: llm, layers: 2, hidden: 16, heads: 2, item_dim: 16}}
    epochs: 2
  - {{stage: sparsify, of: teacher, as: sparse, pattern: 2:4}}
  - {{stage: distill, of: sparse, teacher: teacher, as: student, blocks: 1, weights: {{ms: 0}}, epochs: 2}}
  - {{stage: prune-depth, of: student, as: shallow, keep: [1]}}
  - {{stage: train, start_from: shallow, as: more, epochs: 2}}
  - {{stage: export, of: more, as: more-onnx, variants: [fast, int8-body], top_k: 10,
     parity: {{users: 16, max_ndcg_change: 0.05}}}}
  - stage: bench
    compare: [teacher, more, more-onnx]
    batch_sizes: [1]
    latency_seconds: 1
    draws: 100
    aa: false
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run of the recipe in `home/run`."""
    return finished(tmp_path_factory.mktemp("sparse"), RECIPE, cache_of_session)


def checkpoint(home: Path, name: str) -> Path:
    (folder,) = home.glob(f"run/stages/*-{name}")
    return folder / "checkpoint"


def matrices(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    body = load_checkpoint(folder).bodies()["user"]
    return {name: each.matrix().numpy() for name, each in body_linears(body).items()}


def test_training_moves_every_matrix_and_fills_no_zero(home: Path) -> None:
    sparse, student, more = (matrices(checkpoint(home, name)) for name in ("sparse", "student", "more"))
    for name, matrix in sparse.items():
        assert is_2_to_4(
            load_checkpoint(checkpoint(home, "student")).state_dict()[f"body.backbone.layers.{name}.weight"]
        )
        assert (student[name][matrix == 0] == 0).all() and (student[name] != matrix).any()
        assert (matrix == 0).mean() == 0.5
    for name, matrix in more.items():  # block 1 is block 0 now
        assert ((matrix == 0) == (sparse[f"1{name[1:]}"] == 0)).all()


def test_every_checkpoint_says_how_sparse_it_is(home: Path) -> None:
    notes = {
        name: read_info(checkpoint(home, name)).about.get("sparsity")
        for name in ("teacher", "sparse", "student", "more")
    }
    assert notes["teacher"] is None and notes["student"] == notes["sparse"]
    assert {name[0] for name in notes["more"]["matrices"]} == {"0"}
    assert notes["more"]["zeros"] * 2 == notes["more"]["weights"] == notes["sparse"]["weights"] / 2


def weights(graph: Path) -> list[np.ndarray[Any, Any]]:
    """Every weight of a graph that has two axes."""
    stored = [numpy_helper.to_array(each) for each in onnx.load(graph).graph.initializer]
    return [each for each in stored if each.ndim == 2]


def test_the_canonical_graph_holds_the_very_matrices(home: Path) -> None:
    stored = weights(home / "run/artifacts/more-onnx/catalogue-1/fp32.onnx")
    for name, matrix in matrices(checkpoint(home, "more")).items():
        assert any(np.array_equal(each, matrix) or np.array_equal(each, matrix.T) for each in stored), name


@pytest.mark.parametrize("graph", ["body.onnx", "body-fast.onnx"])
def test_the_bodies_hold_every_zero(home: Path, graph: str) -> None:
    found = matrices(checkpoint(home, "more"))
    zeros = sum(int((each == 0).sum()) for each in found.values())
    stored = weights(home / "run/artifacts/more-onnx" / graph)
    # a rewriting may scale columns, join matrices or cut them apart, but 2:4 stays along their inputs
    sparse = [each for each in stored if 0.4 < (each == 0).mean() < 0.6]
    assert sum(int((each == 0).sum()) for each in sparse) == zeros
    assert sum(each.size for each in sparse) == 2 * zeros


def test_the_artifact_and_the_report_tell_of_zeros_and_that_they_save_nothing(home: Path) -> None:
    manifest = read_json(home / "run/artifacts/more-onnx/manifest.json")
    assert manifest["sparsity"] == read_info(checkpoint(home, "more")).about["sparsity"]
    report = read_json(home / "run/report.json")
    zeros = {each["name"]: each.get("zeros") for each in report["candidates"]}
    assert zeros["teacher"] is None
    assert zeros["more"] == zeros["more-onnx"] and zeros["more"]["of_body_matrices"] == 0.5
    said = [each["text"] for each in report["sections"]["findings"] if "zeros" in each["text"]]
    assert any(text.startswith("more-onnx: 50%") and "neither time nor memory" in text for text in said)


@pytest.mark.slow
def test_the_built_in_recipe_runs_on_small_data(tmp_path: Path) -> None:
    small = [
        f"data={DATA}",
        "stages.bench.latency_seconds=1",
        "stages.bench.draws=100",
        "stages.bench.aa=false",
    ]
    small += [f"stages.{name}.epochs=1" for name in ("teacher", "student", "recovered")]
    small += ["stages.teacher.model.hidden=16", "stages.teacher.model.item_dim=16"]
    sets = [part for each in small for part in ("--set", each)]
    assert main(["run", "slmrec-2to4", "--device", "cpu", "--out", str(tmp_path / "run"), *sets]) == 0
    report = read_json(tmp_path / "run/report.json")
    sparse = {each["name"] for each in report["candidates"] if "zeros" in each}
    assert {"sparse", "recovered", "recovered-onnx"} <= sparse and not {"teacher", "student"} & sparse


def test_the_verb_prunes_a_checkpoint_alone(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(checkpoint(home, "teacher"))
    command = [
        "sparsify",
        teacher,
        "--data",
        DATA,
        "--out",
        str(tmp_path / "one"),
        "--device",
        "cpu",
        "--json",
    ]
    assert main([*command, "--set", "method=wanda", "--set", "pattern=2:4"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["stages"][0]["status"] == "done"
    (made,) = tmp_path.glob("one/stages/*/checkpoint")
    assert read_info(made).about["sparsity"]["pattern"] == "2:4"
    again = ["sparsify", str(made), "--data", DATA, "--out", str(tmp_path / "two"), "--device", "cpu"]
    assert main(again) == 2
    assert "is sparse already (2:4, 50% zeros, which stay)" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "two").exists()
