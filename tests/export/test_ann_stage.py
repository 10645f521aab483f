"""The recall of the variant `ann`: measured and gated by the stage, and again by a refresh."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export.ann import INDEX, gate_recall, made_up, measure_recall
from export.artifact import keep_variants
from export.config import ExportConfig
from export.refresh import refresh_items, versions
from export.runtime import Artifact
from export.stage import run
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError
from recommender.models.interface import SequentialRecommender
from recommender.stage import Bound
from tests.export.ann_fixtures import COARSE, MANY, both, copy, entry_of, needs_faiss
from tests.export.fixtures import (
    MAX_LENGTH,
    MODELS,
    TOP_K,
)
from tests.export.test_refresh import present
from tests.recommender.fixtures import context_for


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, large_model: SequentialRecommender, many_items: Prepared
) -> Bound:
    folder = tmp_path_factory.mktemp("stages") / "00-student"
    save_checkpoint(large_model, folder / "checkpoint", prepared=many_items, model_config=MODELS["sasrec"])
    return Bound("student", "checkpoint", folder / "checkpoint", folder)


def config(**ann: object) -> ExportConfig:
    given = {"of": "student", "as": "onnx", "top_k": TOP_K, "variants": ["ann"], "ann": ann}
    return ExportConfig.model_validate(given | {"parity": {"users": 40, "max_ndcg_change": 1}})


@needs_faiss
def test_the_stage_measures_recall_on_test_histories(
    student: Bound, many_items: Prepared, tmp_path: Path
) -> None:
    context = dataclasses.replace(context_for(many_items, tmp_path, max_length=MAX_LENGTH), threads=1)
    metrics = run(config(), {"student": student}, context).metrics
    entry = entry_of(context.folder / "artifact")
    assert entry["recall"] == metrics["variants"]["ann"]["recall"]
    assert entry["recall"]["histories"] == "test histories" and entry["recall"]["users"] == 40
    assert 0.95 <= entry["recall"]["recall"] <= 1 and entry["speedup"]["mean"] > 0
    assert metrics["default_variant"] == "fp32"


@needs_faiss
def test_an_index_that_finds_too_little_fails_the_stage(
    student: Bound, many_items: Prepared, tmp_path: Path
) -> None:
    context = dataclasses.replace(context_for(many_items, tmp_path, max_length=MAX_LENGTH), threads=1)
    with pytest.raises(
        GateError, match=r"IVF100,Flat finds 0\.\d+ of the exact 10 best .*>= 0\.95"
    ) as caught:
        run(config(index=COARSE.index, search=COARSE.search), {"student": student}, context)
    assert "ann.candidates" in str(caught.value) and caught.value.exit_code == 1


@needs_faiss
def test_a_recall_of_nothing_passes_only_where_nothing_is_asked(coarse: Path) -> None:
    ann, entry = Artifact(coarse, variant="ann"), entry_of(coarse)
    found = measure_recall(ann, made_up(ann, users=20), histories="made-up histories")
    with pytest.raises(GateError, match="finds"):
        gate_recall(found, entry)
    with pytest.raises(GateError, match="finds nan"):
        gate_recall(found | {"recall": float("nan")}, entry)
    entry["ann"]["asked"]["min_recall"] = 0
    gate_recall(found, entry)
    with pytest.raises(GateError, match="2 items came back that were masked"):
        gate_recall(found | {"forbidden_items": 2.0}, entry)


@needs_faiss
def test_a_refresh_makes_the_index_anew_and_measures_it_again(indexed: Path, tmp_path: Path) -> None:
    folder = copy(indexed, tmp_path)
    keep_variants(folder, ["fp32", "fast", "ann"], "fast", {})
    items, vectors = present(folder)
    added = pl.concat([items, pl.DataFrame({"item_id": ["new"]})])
    table = np.concatenate((vectors[::-1], vectors[:1] * 9))
    refresh_items(folder, added, table.astype(np.float32))
    entry = entry_of(folder)
    assert entry["index"] == f"catalogue-2/{INDEX}" and entry["recall"]["histories"] == "made-up histories"
    assert entry["recall"]["recall"] > 0.95
    ann, fast = both(folder)
    assert ann.n_items == MANY + 1
    history = made_up(ann, users=30)
    shared = [
        len(set(a) & set(b)) / 10
        for a, b in zip(ann.top_k(history, 10).items, fast.top_k(history, 10).items, strict=True)
    ]
    assert np.mean(shared) > 0.95
    assert entry_of(folder / "catalogue-1")["index"] == f"catalogue-1/{INDEX}"
    verify_artifact(folder)


@needs_faiss
def test_a_refresh_that_finds_too_little_changes_nothing(coarse: Path, tmp_path: Path) -> None:
    folder = copy(coarse, tmp_path)
    keep_variants(folder, ["fp32", "fast", "ann"], "fast", {})
    items, vectors = present(folder)
    with pytest.raises(GateError, match=r"ann, 256 made-up histories: .*of the exact 10 best"):
        refresh_items(folder, items, vectors)
    assert versions(folder) == [1] and not (folder / "catalogue-2").exists()
