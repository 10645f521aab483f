"""The stage distill from checkpoint to checkpoint: it helps, it is checked, it resumes, and it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress import calibration
from compress.distill import matching
from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import StageError
from recommender.models.config import LoraSettings
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound, Context
from recommender.training.validation import validation_quality

from ..conftest import MakeContext
from .runs import config_for, distill


def validation_ce(checkpoint: Bound, context: Context) -> float:
    drawn = calibration.sample(context.prepared, context.split, users=1000, max_length=10, seed=0)
    model = load_checkpoint(checkpoint.path)
    return calibration.validation_loss(model, drawn)(range(len(model.bodies()["user"].blocks)))


def ndcg(checkpoint: Bound, context: Context) -> float:
    return validation_quality(load_checkpoint(checkpoint.path), context)["ndcg@10"]


@pytest.mark.parametrize(
    "values", [{}, {"form": "code"}, {"positions": "last", "epochs": 40}, {"method": "logits"}], ids=str
)
def test_distilled_student_is_better_than_the_pruned_one(
    values: dict[str, Any], pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    context = make_context("student")
    before = {path: path.read_bytes() for path in teacher.path.rglob("*") if path.is_file()}
    student, metrics = distill(pruned, teacher, context, **values)
    assert metrics["best_ndcg"] > ndcg(pruned, context)
    assert validation_ce(student, context) <= validation_ce(pruned, context) - 0.02
    assert ndcg(student, context) == pytest.approx(metrics["best_ndcg"])
    assert metrics["teacher_ndcg"] == pytest.approx(ndcg(teacher, context))
    assert {path: path.read_bytes() for path in before} == before


TERMS = {"slmrec": {"ce", "cos", "norm", "ms"}, "logits": {"ce", "kd"}, "none": {"ce"}}


@pytest.mark.parametrize("method", TERMS)
def test_every_term_is_logged_at_the_first_step_and_per_epoch(
    method: str, pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    _, metrics = distill(pruned, teacher, make_context("student"), method=method, epochs=2)
    assert set(metrics["first_step"]) == {"loss"} | TERMS[method]
    assert len(metrics["history"]) == 2
    assert all(epoch.keys() >= {"loss", *TERMS[method]} for epoch in metrics["history"])
    assert all(metrics["history"][-1][term] < metrics["first_step"][term] for term in TERMS[method])


def test_auxiliary_heads_are_left_behind(pruned: Bound, teacher: Bound, make_context: MakeContext) -> None:
    student, _ = distill(pruned, teacher, make_context("student"), epochs=1)
    names = [
        {str(p.relative_to(side.path)): set(load_file(p)) for p in side.path.rglob("*.safetensors")}
        for side in (pruned, student)
    ]
    assert names[0] == names[1]
    assert read_info(student.path).parameters == read_info(pruned.path).parameters
    assert read_info(student.path).about["base_blocks"] == [0, 1]


def test_same_seed_gives_the_same_student_and_another_one_another(
    pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    one, same, other = (
        weights(distill(pruned, teacher, make_context(name, seed=seed), epochs=1)[0])
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def weights(checkpoint: Bound) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint.path).state_dict()


class Killed(BaseException):
    """What ends a process is no Exception."""


def test_interrupted_distillation_goes_on_where_it_stopped(
    pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    """Auxiliary heads and their optimizer state are part of what is resumed."""
    whole, expected = distill(pruned, teacher, make_context("whole"), epochs=2)
    steps: list[int] = []

    def kill(event: str, values: Mapping[str, Any]) -> None:
        if event == "step":
            steps.append(values["step"])
            if values["step"] == 7 and steps.count(7) == 1:
                raise Killed

    context = make_context("killed", progress=kill)
    with pytest.raises(Killed):
        distill(pruned, teacher, context, epochs=2, save_every_seconds=0)
    resumed, metrics = distill(pruned, teacher, context, epochs=2, save_every_seconds=0)
    assert steps == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]
    assert metrics["best_ndcg"] == expected["best_ndcg"]
    assert metrics["first_step"] == expected["first_step"]
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())


@pytest.mark.parametrize("name", ["cosine_term", "norm_term", "supervision_term"])
def test_distillation_that_does_nothing_fails_at_the_first_step(
    name: str, pruned: Bound, teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published trainer goes on silently when its terms are lost."""
    monkeypatch.setattr(matching, name, lambda *_: torch.zeros((), requires_grad=True))
    context = make_context("broken")
    term = {"cosine_term": "cos", "norm_term": "norm", "supervision_term": "ms"}[name]
    with pytest.raises(StageError, match=f"'{term}' .* is 0 at the first step"):
        distill(pruned, teacher, context)
    assert not (context.folder / "checkpoint").exists()


def test_teacher_without_a_difference_to_its_student_is_an_error(
    teacher: Bound, make_context: MakeContext
) -> None:
    with pytest.raises(StageError, match="at the first step"):
        distill(teacher, teacher, make_context("same"), weights={"ms": 0.0})


def test_broken_teacher_is_an_error(
    pruned: Bound, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    model, info = load_checkpoint(teacher.path), read_info(teacher.path)
    assert isinstance(model, LlmRecommender)
    with torch.no_grad():
        model.body.blocks[1].mlp.up_proj.weight.fill_(float("nan"))
    context = make_context("broken")
    save_checkpoint(model, context.folder / "teacher", prepared=prepared, model_config=info.model_config)
    broken = Bound("teacher", "checkpoint", context.folder / "teacher", context.folder)
    with pytest.raises(StageError, match=r"'cos' .* is nan at the first step"):
        distill(pruned, broken, context)


def test_lora_student_trains_adapters_and_is_saved_without_them(
    pruned: Bound, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    model, info = load_checkpoint(pruned.path), read_info(pruned.path)
    context = make_context("lora")
    config = info.model_config.model_copy(update={"lora": LoraSettings(r=2, targets=("up_proj",))})
    save_checkpoint(model, context.folder / "start", prepared=prepared, model_config=config)
    start = Bound("pruned", "checkpoint", context.folder / "start", context.folder)
    student, _ = distill(start, teacher, context, epochs=1)
    old, new = weights(start), weights(student)
    assert old.keys() == new.keys()
    torch.manual_seed(99)  # adapters come from the context's seed
    again = weights(distill(start, teacher, make_context("again"), epochs=1)[0])
    assert all(torch.equal(new[name], again[name]) for name in new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    in_body = {name for name in changed if name.startswith("body.")}
    assert in_body and all("up_proj" in name for name in in_body)
    assert any("output_projection" in name for name in changed)


LAUNCHED = """
import json, os, sys
from pathlib import Path
from compress.distill.stage import DistillConfig, run
from recommender.data.prepared import Prepared
from tests.compress.conftest import bound, context_in
data, pruned, teacher, out = map(Path, sys.argv[1:5])
rank = os.environ["RANK"]
assert os.environ["WORLD_SIZE"] == sys.argv[5]
context = context_in(out / rank, Prepared(data))
config = DistillConfig.model_validate(json.loads(sys.argv[6]))
metrics = run(config, {"pruned": bound("p", pruned), "teacher": bound("t", teacher)}, context).metrics
(out / f"{rank}.json").write_text(json.dumps(metrics["history"]))
from accelerate import PartialState
PartialState().wait_for_everyone()
PartialState().destroy_process_group()  # gloo's threads abort a process that leaves without it
"""


@pytest.mark.slow
def test_two_processes_distil_the_same_student_as_one(
    tmp_path: Path, pruned: Bound, teacher: Bound, prepared: Prepared
) -> None:
    config = config_for(optimizer="sgd", learning_rate=0.1, precision="fp64", epochs=20, validate_every=20)
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    folders = [str(path) for path in (prepared.path, pruned.stage_folder, teacher.stage_folder)]
    histories = []
    for processes in ("1", "2"):
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            processes,
        ]
        given = [*folders, str(tmp_path / processes), processes, config.model_dump_json(by_alias=True)]
        env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launch, str(script), *given], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        histories.append(json.loads((tmp_path / processes / "0.json").read_text()))
    one, two = (history[-1] for history in histories)
    assert one["step"] == two["step"] == 100
    for term in ("loss", "ce", "cos", "norm", "ms"):
        assert two[term] == pytest.approx(one[term], abs=1e-5)
        assert histories[0][0][term] != pytest.approx(one[term], abs=1e-4)
