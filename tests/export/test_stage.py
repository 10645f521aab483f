import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import export.onnx
from export.config import ExportConfig
from export.parity import ParityConfig
from export.runtime import Artifact
from export.stage import run
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError
from recommender.models.interface import SequentialRecommender
from recommender.stage import Bound, Context
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, TOP_K, perturb
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from

CONFIG = ExportConfig.model_validate(
    {"of": "student", "as": "student-onnx", "top_k": TOP_K, "parity": {"users": 20}}
)


@pytest.fixture(scope="module")
def student(tmp_path_factory, sasrec: SequentialRecommender, prepared: Prepared) -> Bound:
    folder = tmp_path_factory.mktemp("stages") / "00-student"
    save_checkpoint(sasrec, folder / "checkpoint", prepared=prepared, model_config=MODELS["sasrec"])
    return Bound("student", "checkpoint", folder / "checkpoint", folder)


@pytest.fixture
def context(tmp_path: Path, prepared: Prepared) -> Context:
    made = context_for(prepared, tmp_path, max_length=MAX_LENGTH)
    return dataclasses.replace(made, recipe={"name": "tiny"}, command="recpress run tiny", threads=1)


def test_the_stage_writes_an_artifact_and_reports_parity_and_size(student: Bound, context: Context) -> None:
    outputs = run(CONFIG, {"student": student}, context)
    artifact = Artifact(context.folder / "artifact")
    assert artifact.manifest["name"] == "student-onnx"
    assert len(artifact.manifest["parents"]["student"]) == 64
    assert (
        artifact.manifest["recipe"] == {"name": "tiny"}
        and artifact.manifest["command"] == "recpress run tiny"
    )
    assert artifact.manifest["mask_seen"] is True
    metrics = outputs.metrics
    assert metrics["parity"]["top10_overlap_outside_margin"] == 1
    assert metrics["nodes"] > 10 and metrics["export_seconds"] > 0
    assert metrics["size_bytes"] == (context.folder / "artifact" / "catalogue-1/fp32.onnx").stat().st_size


def test_a_graph_that_ranks_differently_fails_the_stage(
    student: Bound, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.onnx.export_onnx

    def wrong(model, path, **options):
        facts = right(model, path, **options)
        perturb(path, scale=0.05)
        return facts

    monkeypatch.setattr(export.onnx, "export_onnx", wrong)
    with pytest.raises(GateError, match=r"worst at [a-z0-9-]+/[a-z0-9-]+\): .* does not rank like its model"):
        run(CONFIG, {"student": student}, context)


def test_a_checkpoint_of_another_data_set_is_refused(student: Bound, tmp_path: Path) -> None:
    other = prepared_from(tmp_path / "other", cyclic_histories(20, N_ITEMS + 1, 9), N_ITEMS + 1)
    context = context_for(other, tmp_path / "run")
    with pytest.raises(InputError, match="another data set"):
        run(CONFIG, {"student": student}, context)
    assert not list(context.folder.iterdir())


def test_the_config_consumes_a_checkpoint_and_produces_an_artifact() -> None:
    assert CONFIG.consumes == ("student",) and CONFIG.produces == "student-onnx"
    assert CONFIG.parity.batch_sizes == ParityConfig().batch_sizes == (1, 7, 32)


@pytest.mark.parametrize(
    "wrong", [{"opset": 24}, {"format": "tensorrt"}, {"top_k": 0}, {"parity": {"atol": 0}}, {"k": 5}]
)
def test_wrong_options_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ExportConfig.model_validate({"of": "a", "as": "b"} | wrong)


def test_reading_the_config_and_the_runtime_imports_no_torch() -> None:
    code = (
        "import sys, export.stage, export.artifact, export.recommend, export.verify, export.runtime\n"
        "heavy = {'torch', 'transformers', 'onnx', 'optimum'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_whose_noted_zeros_are_filled_is_refused(
    sasrec: SequentialRecommender, prepared: Prepared, context: Context, tmp_path: Path
) -> None:
    note = {
        "method": "wanda", "pattern": "2:4", "sparsity": 0.5, "matrices": {"0.up": 0.5}, "zeros": 1,
        "weights": 2,
    }  # fmt: skip
    folder = tmp_path / "00-filled"
    save_checkpoint(
        sasrec,
        folder / "checkpoint",
        prepared=prepared,
        model_config=MODELS["sasrec"],
        about={"sparsity": note},
    )
    with pytest.raises(
        InputError, match=r"00-filled/checkpoint: 0\.up has 0\.0% zeros, but the checkpoint notes 50\.0%"
    ) as error:
        run(CONFIG, {"student": Bound("student", "checkpoint", folder / "checkpoint", folder)}, context)
    assert error.value.exit_code == 2 and "as the stage sparsify wrote it" in str(error.value.fix)
    assert not (context.folder / "artifact").exists()
