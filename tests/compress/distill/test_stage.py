"""The stage distill from checkpoint to checkpoint: it helps, it is checked, it resumes, and it refuses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.distill import matching
from compress.distill.stage import DistillConfig, run
from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune
from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import InputError, StageError
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, LoraSettings, PopularityConfig, SasrecConfig
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound, Context, Shape
from recommender.training.loop import validation_quality

from ..conftest import LLM, SETTINGS, MakeContext, bound, context_in, train_tiny, write_log

SHORT = SETTINGS | {"epochs": 4, "learning_rate": 1e-2}


def config_for(**values: Any) -> DistillConfig:
    entries = {"stage": "distill", "of": "pruned", "teacher": "teacher", "as": "student", "blocks": 2}
    return DistillConfig(**(SHORT | entries | values))


def distill(
    student: Bound, teacher: Bound, context: Context, **values: Any
) -> tuple[Bound, Mapping[str, Any]]:
    outputs = run(config_for(**values), {"pruned": student, "teacher": teacher}, context)
    return bound("student", context.folder), outputs.metrics


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, teacher: Bound, prepared: Prepared) -> Bound:
    """The first two of the teacher's four blocks."""
    folder = tmp_path_factory.mktemp("runs") / "pruned"
    config = PruneDepthConfig.model_validate({"stage": "prune-depth", "of": "t", "as": "pruned", "keep": 2})
    prune(config, {"t": teacher}, context_in(folder, prepared))
    return bound("pruned", folder)


def ndcg(checkpoint: Bound, context: Context) -> float:
    return validation_quality(load_checkpoint(checkpoint.path), context)["ndcg@10"]


@pytest.mark.parametrize(
    "values", [{}, {"form": "code"}, {"positions": "last"}, {"method": "logits"}], ids=str
)
def test_distilled_student_is_better_than_the_pruned_one(
    values: dict[str, Any], pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    context = make_context("student")
    before = {path: path.read_bytes() for path in teacher.path.rglob("*") if path.is_file()}
    student, metrics = distill(pruned, teacher, context, **values)
    assert metrics["best_ndcg"] >= ndcg(pruned, context) + 0.02
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
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    in_body = {name for name in changed if name.startswith("body.")}
    assert in_body and all("up_proj" in name for name in in_body)
    assert any("output_projection" in name for name in changed)


def prompted(folder: Path, prepared: Prepared, layers: int) -> Bound:
    """A checkpoint of a model with a suffix, as a backbone with a tokenizer would give it."""
    config = LlmConfig(layers=layers, hidden=16, item_dim=8, dropout=0.0)
    plain = build_model(config, n_items=prepared.n_items, max_length=10, seed=layers)
    assert isinstance(plain, LlmRecommender)
    model = LlmRecommender(
        plain.body,
        item_vectors=plain.items.weight.detach(),
        train_items=True,
        max_length=10,
        dropout=0.0,
        suffix=0.1 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0)),
    )
    saved = config.model_copy(update={"backbone": "somewhere", "suffix": "next:"})
    save_checkpoint(model, folder / "checkpoint", prepared=prepared, model_config=saved)
    return bound(folder.name, folder)


def test_suffix_is_distilled_at_the_last_position_and_refused_elsewhere(
    tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    student, teacher = prompted(tmp_path / "s", prepared, 2), prompted(tmp_path / "t", prepared, 4)
    _, metrics = distill(student, teacher, make_context("last"), positions="last", epochs=3)
    assert metrics["history"][-1]["ce"] < metrics["first_step"]["ce"]
    assert all(metrics["first_step"][term] > 0 for term in ("cos", "norm", "ms"))
    context = make_context("all")
    with pytest.raises(InputError, match=r"distill\.positions: with a prompt suffix"):
        distill(student, teacher, context, positions="all")
    assert not (context.folder / "checkpoint").exists()


@pytest.mark.parametrize(("blocks", "layers"), [(3, 2), (4, 2)])
def test_blocks_that_do_not_divide_are_refused(
    blocks: int, layers: int, pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    with pytest.raises(
        InputError, match=rf"distill\.blocks: {blocks} does not divide the {layers} blocks of 'pruned'"
    ):
        distill(pruned, teacher, make_context("refused"), blocks=blocks)
    distill(pruned, teacher, make_context("logits"), blocks=blocks, method="logits", epochs=1)


def test_widths_must_agree_for_slmrec_and_need_not_for_logits(
    tmp_path: Path, pruned: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    wide, _ = train_tiny(tmp_path / "wide", prepared, LLM | {"hidden": 32, "layers": 2}, epochs=1)
    with pytest.raises(InputError, match="same hidden size"):
        distill(pruned, wide, make_context("refused"))
    _, metrics = distill(pruned, wide, make_context("logits"), method="logits", epochs=1)
    assert metrics["first_step"]["kd"] > 0


def test_checkpoints_of_another_catalogue_are_refused(
    tmp_path: Path, pruned: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    other = write_log(tmp_path / "other", prefix="x")
    stranger, _ = train_tiny(tmp_path / "stranger", other, LLM | {"layers": 2}, epochs=1)
    for student, master in ((pruned, stranger), (stranger, teacher)):
        with pytest.raises(InputError, match="another data set"):
            distill(student, master, make_context("refused"))


LLAMA, SAS = LlmConfig(layers=8), SasrecConfig(hidden=32)
FAR = LlmConfig(layers=8, backbone="somewhere/llama")


@pytest.mark.parametrize(
    ("values", "student", "teacher", "fields"),
    [
        ({"blocks": 4}, Shape("checkpoint", 4, LLAMA), Shape("checkpoint", 8, LLAMA), []),
        ({"blocks": 3}, Shape("checkpoint", 6, LLAMA), Shape("checkpoint", 8, LLAMA), ["blocks"]),
        ({"blocks": 3}, Shape("checkpoint", 4, LLAMA), Shape("checkpoint", 8, LLAMA), ["blocks", "blocks"]),
        ({"blocks": 3}, Shape("checkpoint"), Shape("checkpoint"), []),
        ({"blocks": 3, "method": "none"}, Shape("checkpoint", 4, LLAMA), Shape("checkpoint", 8, LLAMA), []),
        ({}, Shape("checkpoint", 2, SAS), Shape("checkpoint", 8, LLAMA), ["teacher"]),
        ({"method": "logits"}, Shape("checkpoint", 2, SAS), Shape("checkpoint", 8, LLAMA), []),
        ({}, Shape("checkpoint", 2, SAS), Shape("checkpoint", 8, FAR), []),
        ({}, Shape("checkpoint", None, PopularityConfig()), Shape("checkpoint", 8, LLAMA), ["of"]),
        ({}, Shape("checkpoint", 2, FAR.model_copy(update={"suffix": "x"})), Shape("checkpoint", 8, FAR), ["positions"]),
        ({"positions": "last"}, Shape("checkpoint", 2, FAR.model_copy(update={"suffix": "x"})), Shape("checkpoint", 8, FAR), []),
    ],
)  # fmt: skip
def test_problems_are_found_before_anything_runs(
    values: dict[str, Any], student: Shape, teacher: Shape, fields: list[str]
) -> None:
    config = config_for(**values)
    assert [field for field, _ in config.problems({"pruned": student, "teacher": teacher})] == fields
    assert config.problems({}) == []
    assert config.shape({"pruned": student}) == student
    assert config.consumes == ("pruned", "teacher") and config.produces == "student" and config.distributed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {"cos": 0, "norm": 0, "ms": 0}}, "would teach nothing"),
        ({"blocks": 1}, "no inner blocks"),
        ({"weights": {"cos": -1}}, "greater than or equal to 0"),
        ({"temperature": 0}, "greater than 0"),
        ({"kd_weight": 1.5}, "less than or equal to 1"),
        ({"method": "slm"}, "'slmrec', 'logits' or 'none'"),
        ({"lambda": 1}, "Extra inputs"),
    ],
)
def test_configs_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(**values)
    assert config_for(blocks=1, weights={"ms": 0}).blocks == 1
