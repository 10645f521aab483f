"""What the stage distill refuses, before anything runs where that can be seen."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, PopularityConfig, SasrecConfig
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound, Shape

from ..conftest import LLM, MakeContext, bound, train_tiny, write_log
from .runs import config_for, distill


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
SUFFIXED = Shape("checkpoint", 2, LlmConfig(layers=2, backbone="somewhere/llama", suffix="next:"))


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
        ({}, SUFFIXED, Shape("checkpoint", 8, FAR), ["positions"]),
        ({"positions": "last"}, SUFFIXED, Shape("checkpoint", 8, FAR), []),
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
