"""fp16 and bf16 in artifacts: who may open them, what the stage measures, what a refresh makes of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import export.half
from export.artifact import keep_variants
from export.config import ExportConfig
from export.half_check import gate_agreement, open_rounded
from export.refresh import refresh_items, versions
from export.runtime import Artifact, ArtifactError
from export.stage import run
from export.variants import HalfKind, is_lossy, to_try
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError, StageError
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from recommender.stage import Bound, Context
from recpress.given import scorers
from tests.export.fixtures import (
    MAX_LENGTH,
    MODELS,
    TOP_K,
    left_padded,
    make_artifact,
)
from tests.export.test_half import KINDS, STEP, distance
from tests.export.test_refresh import present
from tests.recommender.fixtures import context_for


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, sasrec: SequentialRecommender, prepared: Prepared
) -> Path:
    made = tmp_path_factory.mktemp("half") / "artifact"
    make_artifact(sasrec, made, prepared, variants=("fast", "fp16", "bf16"))
    keep_variants(made, ["fp32", "fast", "fp16", "bf16"], "fast", {})
    return made


def entries(folder: Path) -> dict[str, dict]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {entry["name"]: entry for entry in manifest["variants"]}


def test_they_come_by_name_only_and_are_lossy() -> None:
    assert is_lossy("fp16") and is_lossy("bf16")
    assert not {"fp16", "bf16", "ann"} & set(to_try(None, 10**7))
    assert to_try(("bf16", "fast"), 10) == ("fp32", "fast", "bf16")


def test_the_manifest_says_where_a_file_runs(folder: Path) -> None:
    found = entries(folder)
    assert found["fp16"]["files"] == [found["fp16"]["graph"]] == ["catalogue-1/fp16.onnx"]
    assert found["fp16"]["on_cpu"] is True and "onnxruntime on a CPU" in found["fp16"]["runs_on"]
    assert found["bf16"]["on_cpu"] is False
    assert found["bf16"]["runs_on"].startswith("runtimes that compute in bf16; not onnxruntime on a CPU")
    assert [found[kind]["precision"] for kind in KINDS] == ["fp16", "bf16"]
    assert {"catalogue-1/fp16.onnx", "catalogue-1/bf16.onnx"} <= set(verify_artifact(folder).files)


def test_a_file_for_other_runtimes_is_refused_by_name_and_not_benched_here(folder: Path) -> None:
    history = HistoryArrays(left_padded(5, MAX_LENGTH))
    half, whole = (Artifact(folder, variant=name).top_k(history, TOP_K) for name in ("fp16", "fp32"))
    np.testing.assert_allclose(half.scores, whole.scores, atol=6 * STEP["fp16"] * np.abs(whole.scores).max())
    with pytest.raises(
        ArtifactError, match=r"bf16\.onnx of .* is for runtimes that compute in bf16"
    ) as caught:
        Artifact(folder, variant="bf16")
    assert "(fp32, fast, fp16)" in str(caught.value)
    opened = [ref.options["variant"] for ref in scorers("a", "artifact", folder)]
    assert opened == ["fast", "fp32", "fp16"]


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(folder, tmp_path / "artifact")
    return tmp_path / "artifact"


def test_a_refresh_writes_them_anew(own: Path) -> None:
    items, vectors = present(own)
    refresh_items(own, items, vectors[::-1].copy())
    found = entries(own)
    for kind in KINDS:
        assert found[kind]["graph"] == f"catalogue-2/{kind}.onnx"
        assert found[kind]["agreement"]["recall"] > 0.95
    history = HistoryArrays(left_padded(5, MAX_LENGTH))
    half, whole = (Artifact(own, variant=name).top_k(history, TOP_K) for name in ("fp16", "fp32"))
    np.testing.assert_allclose(half.scores, whole.scores, atol=6 * STEP["fp16"] * np.abs(whole.scores).max())
    verify_artifact(own)


@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [(1e9, StageError, "beyond the range of fp16"), (1e-9, GateError, r"lists from vectors rounded to fp16")],
)
def test_a_refresh_with_vectors_that_fp16_cannot_hold_changes_nothing(
    own: Path, factor: float, error: type[Exception], message: str
) -> None:
    items, vectors = present(own)
    with pytest.raises(error, match=message):
        refresh_items(own, items, (vectors * factor).astype(np.float32))
    assert versions(own) == [1] and not (own / "catalogue-2").exists()


def test_agreement_is_gated(folder: Path) -> None:
    good = {"recall": 0.95, "depth": 10, "users": 3, "histories": "made-up histories"}
    gate_agreement(good, {"name": "bf16"})
    for wrong in (0.89, float("nan")):
        with pytest.raises(GateError, match="lists from vectors rounded to bf16 hold"):
            gate_agreement(good | {"recall": wrong}, {"name": "bf16"})


def test_a_rounded_artifact_answers_through_the_served_path(folder: Path, tmp_path: Path) -> None:
    opened = open_rounded(folder, entries(folder)["bf16"], tmp_path, threads=1)
    history = HistoryArrays(left_padded(20, MAX_LENGTH))
    rounded, whole = (
        each.top_k(history, TOP_K).scores for each in (opened, Artifact(folder, variant="fp32"))
    )
    assert 0 < distance(rounded, whole) < 6 * STEP["bf16"]


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, sasrec: SequentialRecommender, prepared: Prepared
) -> Bound:
    folder = tmp_path_factory.mktemp("stages") / "00-student"
    save_checkpoint(sasrec, folder / "checkpoint", prepared=prepared, model_config=MODELS["sasrec"])
    return Bound("student", "checkpoint", folder / "checkpoint", folder)


@pytest.fixture
def context(tmp_path: Path, prepared: Prepared) -> Context:
    return dataclasses.replace(context_for(prepared, tmp_path, max_length=MAX_LENGTH), threads=1)


def config(**parity: float) -> ExportConfig:
    given = {"of": "student", "as": "onnx", "top_k": TOP_K, "variants": list(KINDS)}
    return ExportConfig.model_validate(given | {"parity": {"users": 20, "max_ndcg_change": 0.05} | parity})


def test_the_stage_measures_them_rounded_and_where_they_run_here(student: Bound, context: Context) -> None:
    metrics = run(config(), {"student": student}, context).metrics
    found, written = metrics["variants"], entries(context.folder / "artifact")
    assert metrics["default_variant"] == "fp32" and list(written) == ["fp32", "fp16", "bf16"]
    for kind in KINDS:
        assert written[kind]["parity"] == found[kind]["parity"]
        assert 0 < found[kind]["parity"]["max_score_error"] < 6 * STEP[kind]
        assert f"every stored value rounded to {kind}" in written[kind]["checked"]
    assert found["fp16"]["parity_here"]["max_score_error"] > 0 and found["fp16"]["speedup"]["mean"] > 0
    assert "parity_here" not in found["bf16"] and "speedup" not in found["bf16"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_graph_of_other_quality_fails_the_stage(
    student: Bound, context: Context, monkeypatch: pytest.MonkeyPatch, kind: HalfKind
) -> None:
    right = export.half.to_half

    def wrong(model: ir.Model, asked: HalfKind) -> ir.Model:
        made = right(model, asked)
        if asked == kind:  # the worst items first
            node = next(node for node in made.graph if node.op_type == "TopK")
            node.attributes["largest"] = ir.AttrInt64("largest", 0)
        return made

    monkeypatch.setattr(export.half, "to_half", wrong)
    with pytest.raises(GateError, match=rf"of {kind}, rounded \(worst at .*ndcg10_change|forbidden_items"):
        run(config(max_ndcg_change=1e-3), {"student": student}, context)
