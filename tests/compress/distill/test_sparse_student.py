"""Training on top of a sparse checkpoint, stage by stage: its zeros stay, and only as they are noted."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import compress.depth_retraining as retraining
from compress.depth_profile import DepthProfileConfig
from compress.depth_profile import run as profile
from recommender.checkpoint import load_checkpoint, read_info
from recommender.errors import InputError
from recommender.models.config import LoraSettings
from recommender.models.linears import body_linears
from recommender.models.zeros import HeldZeros
from recommender.stage import Bound
from recommender.training.validation import validation_quality
from recommender.warm_start import AdaptConfig
from recommender.warm_start import run as adapt

from ..conftest import MakeContext, bound
from ..sparse import matrices, sparsify
from .runs import distill


class Killed(Exception):
    """Stands for a SIGKILL at a step."""


@pytest.fixture
def sparse(pruned: Bound, make_context: MakeContext) -> Bound:
    """The pruned student with 2:4 zeros."""
    return sparsify(pruned, make_context, pattern="2:4")[0]


def change_config(checkpoint: Bound, change: Any) -> None:
    file = checkpoint.path / "config.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def with_adapters(checkpoint: Bound) -> None:
    lora = LoraSettings(r=2, targets=("up_proj", "q_proj")).model_dump(mode="json")
    change_config(checkpoint, lambda document: document["model"].update(lora=lora))


def filled(before: Bound, after: Bound) -> set[str]:
    """Matrices with a weight where there was none."""
    new = matrices(after)
    return {name for name, old in matrices(before).items() if bool(new[name][old == 0].any())}


def moved(before: Bound, after: Bound) -> set[str]:
    new = matrices(after)
    return {name for name, old in matrices(before).items() if not torch.equal(old, new[name])}


@pytest.mark.parametrize("lora", [False, True])
def test_distillation_fills_no_zero_unless_nobody_noted_them(
    lora: bool, sparse: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    if lora:
        with_adapters(sparse)
    student, metrics = distill(sparse, teacher, make_context("held"), weight_decay=0.1)
    every = {name for name in matrices(sparse) if not lora or name.endswith(("up_proj", "q_proj"))}
    assert (filled(sparse, student), moved(sparse, student)) == (set(), every)
    assert read_info(student.path).about["sparsity"] == read_info(sparse.path).about["sparsity"]
    context = make_context("quality")
    saved = validation_quality(load_checkpoint(student.path), context)
    assert metrics["best_ndcg"] == pytest.approx(saved["ndcg@10"])  # merging has not changed what was chosen
    change_config(sparse, lambda document: document["about"].pop("sparsity"))
    loose, _ = distill(sparse, teacher, make_context("loose"), weight_decay=0.1)
    assert filled(sparse, loose) == every


def test_a_distillation_that_goes_on_gives_the_same_sparse_student(
    sparse: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    whole, _ = distill(sparse, teacher, make_context("whole"))

    def stop(event: str, values: Mapping[str, Any]) -> None:
        if event == "step" and values["step"] == 7:
            raise Killed

    with pytest.raises(Killed):
        distill(sparse, teacher, make_context("resumed", progress=stop), save_every_seconds=0)
    resumed, _ = distill(sparse, teacher, make_context("resumed"), save_every_seconds=0)
    assert filled(sparse, resumed) == set()
    for name, matrix in matrices(whole).items():
        assert torch.equal(matrices(resumed)[name], matrix)


def test_recovered_is_better_than_sparse(pruned: Bound, teacher: Bound, make_context: MakeContext) -> None:
    sparse, metrics = sparsify(pruned, make_context, method="magnitude", sparsity=0.7)
    _, recovered = distill(sparse, teacher, make_context("recovered"), epochs=8)
    assert recovered["best_ndcg"] > metrics["ndcg@10"]


def test_a_student_whose_zeros_were_filled_is_refused(
    sparse: Bound, pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    note = read_info(sparse.path).about["sparsity"]
    dense = bound("dense", make_context("dense").folder)
    shutil.copytree(pruned.path, dense.path)
    change_config(dense, lambda document: document["about"].update(sparsity=note))
    with pytest.raises(InputError, match=r"has 0\.0% zeros, but the checkpoint notes 50\.0%"):
        distill(dense, teacher, make_context("refused"))


@pytest.mark.parametrize(("init", "holds"), [("teacher", True), ("fresh", False)])
def test_the_depths_of_a_profile_are_trained_with_their_zeros(
    init: str, holds: bool, sparse: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, float]] = []
    fit = retraining.fit

    def watched(objective: Any, model: Any, *rest: Any, held: HeldZeros | None) -> Any:
        result = fit(objective, model, *rest, held=held)
        found = [each.matrix() for each in body_linears(model.bodies()["user"]).values()]
        seen.append((held is not None, sum(float((m == 0).float().mean()) for m in found) / len(found)))
        return result

    monkeypatch.setattr(retraining, "fit", watched)
    values = {"of": "source", "as": "profile", "keep": [1], "retrain": True, "epochs": 1, "init": init}
    profile(
        DepthProfileConfig.model_validate({"stage": "depth-profile", **values}),
        {"source": sparse},
        make_context("p"),
    )
    assert seen == [(holds, 0.5 if holds else 0.0)]


def test_adapting_to_a_grown_catalogue_carries_the_zeros(sparse: Bound, make_context: MakeContext) -> None:
    context = make_context("adapted")
    adapt(AdaptConfig.model_validate({"stage": "adapt", "of": "s", "as": "a"}), {"s": sparse}, context)
    adapted = bound("adapted", context.folder)
    assert moved(sparse, adapted) == set()
    assert read_info(adapted.path).about["sparsity"] == read_info(sparse.path).about["sparsity"]
