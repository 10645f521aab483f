"""Every model that can be built is exported, run at odd shapes, and passes the parity gate."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.artifact import Origin, write_artifact
from export.graph import ScoringGraph
from export.lint import lint
from export.measure import measure_parity
from export.parity import ParityConfig, gate
from export.runtime import Artifact
from recommender.data.prepared import Prepared
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, TOP_K, left_padded, tiny_model

QUICK = ("llama", "qwen3", "narrow", "gpt2", "sasrec", "popularity")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
NO_MATHS_IN_PIECES = {"Pow", "ReduceMean", "IsNaN"}
"""Operators of norms and NaN guards that were not rewritten; gpt2's tanh-GELU has a Pow of its own."""


@pytest.mark.parametrize("name", EVERY)
def test_export_ranks_like_the_model(name: str, tmp_path: Path, prepared: Prepared) -> None:
    model = tiny_model(name)
    origin = Origin(name=name, parents={}, recipe={})
    facts = write_artifact(model, tmp_path / name, prepared=prepared, origin=origin, top_k=TOP_K, opset=23)
    allowed = {"Pow"} if name == "gpt2" else set()
    assert not NO_MATHS_IN_PIECES - allowed & set(facts.operators)
    found = lint(tmp_path / name / "catalogue-1/fp32.onnx", profiled=["batch", "length", "seen"])
    assert [each for each in found if each.severity == "error"] == []
    artifact = Artifact(tmp_path / name, threads=1)
    for batch, length in ((1, 1), (1, MAX_LENGTH), (9, 7), (32, MAX_LENGTH)):
        items = left_padded(batch, length, n_items=N_ITEMS)
        answer = artifact.run(items, items)
        with torch.no_grad():
            rows, scores = ScoringGraph(model, TOP_K)(torch.from_numpy(items), torch.from_numpy(items))
        np.testing.assert_allclose(answer.scores, scores.numpy(), atol=1e-5)
        if name != "popularity":  # torch leaves ties in any order
            np.testing.assert_array_equal(answer.items, rows.numpy())
    parity = measure_parity(
        model,
        artifact,
        prepared,
        prepared.split("leave-one-out"),
        ParityConfig(users=20),
        mask_seen=True,
        seed=0,
    )
    gate(parity, ParityConfig())
    assert {entry.domain for entry in onnx.load(tmp_path / name / "catalogue-1/fp32.onnx").opset_import} == {
        ""
    }


def test_an_empty_history_gets_an_answer_that_is_no_nan(exported: Path) -> None:
    answer = Artifact(exported).run(np.zeros((2, 3), np.int64), np.zeros((2, 1), np.int64))
    assert np.isfinite(answer.scores).all()
