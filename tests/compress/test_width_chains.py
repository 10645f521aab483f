"""What other stages make of a narrow checkpoint."""

import pytest

from compress.distill.stage import DistillConfig
from compress.distill.stage import run as run_distill
from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as run_depth
from recommender.checkpoint import read_info
from recommender.errors import InputError
from recommender.models.config import LlmConfig
from recommender.stage import Bound, Shape

from .conftest import MakeContext, bound
from .narrowed import config_for, model_of, prune, shape_of


def test_a_narrow_student_learns_from_its_teacher(teacher: Bound, make_context: MakeContext) -> None:
    narrow, _ = prune(teacher, make_context, ffn=0.25, heads=1)
    context = make_context("student")
    config = DistillConfig.model_validate(
        {"stage": "distill", "of": "narrow", "teacher": "teacher", "as": "student", "blocks": 2}
        | {"epochs": 2, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 2}
    )
    run_distill(config, {"narrow": narrow, "teacher": teacher}, context)
    student = bound("student", context.folder)
    assert read_info(student.path).about["width"]["ffn"] == 12
    assert model_of(student).body.config.intermediate_size == 12


def test_slmrec_refuses_another_hidden_size_and_logits_does_not(
    teacher: Bound, make_context: MakeContext
) -> None:
    narrow, _ = prune(teacher, make_context, hidden=12)
    entries = {"stage": "distill", "of": "narrow", "teacher": "teacher", "as": "student", "epochs": 1}
    sides = {"narrow": narrow, "teacher": teacher}
    with pytest.raises(InputError, match="same hidden size"):
        run_distill(DistillConfig.model_validate(entries), sides, make_context("refused"))
    known = {
        "narrow": config_for(hidden=12).shape({"source": shape_of(teacher)}),
        "teacher": shape_of(teacher),
    }
    assert DistillConfig.model_validate(entries).problems(known)[0][0] == "teacher"
    context = make_context("student")
    run_distill(DistillConfig.model_validate(entries | {"method": "logits"}), sides, context)
    assert model_of(bound("student", context.folder)).body.config.hidden_size == 12


@pytest.mark.parametrize("init", ["teacher", "fresh"])
def test_depth_can_be_cut_after_width(init: str, teacher: Bound, make_context: MakeContext) -> None:
    narrow, _ = prune(teacher, make_context, ffn=24, heads=1)
    context = make_context("short")
    config = PruneDepthConfig.model_validate({"of": "narrow", "as": "short", "keep": 2, "init": init})
    assert config.problems({"narrow": shape_of(narrow)}) == []
    run_depth(config, {"narrow": narrow}, context)
    short = bound("short", context.folder)
    body = model_of(short).body.config
    assert (body.num_hidden_layers, body.intermediate_size, body.num_attention_heads) == (2, 24, 1)
    assert body.head_dim == 8 and "width" in read_info(short.path).about
    again, _ = prune(short, make_context, "again", ffn=12)  # and cut once more
    assert model_of(again).body.config.intermediate_size == 12


def test_the_base_of_a_narrow_body_is_refused_before_and_while_running(
    teacher: Bound, make_context: MakeContext
) -> None:
    narrow, _ = prune(teacher, make_context, ffn=24)
    config = PruneDepthConfig.model_validate({"of": "narrow", "as": "short", "keep": 2, "init": "base"})
    planned = {"narrow": config_for().shape({"source": shape_of(teacher)})}
    for known in (planned, {"narrow": shape_of(narrow)}):
        ((place, wrong),) = config.problems(known)
        assert place == "init" and "prune-width has cut this body" in wrong
    with pytest.raises(InputError, match="prune-width has cut this body"):
        run_depth(config, {"narrow": narrow}, make_context("refused"))
    after_depth = PruneDepthConfig.model_validate({"of": "narrow", "as": "short", "keep": 2}).shape(planned)
    assert after_depth.narrowed
    pretrained = Shape("checkpoint", 4, LlmConfig(backbone="x"), narrowed=True)
    fresh = PruneDepthConfig.model_validate({"of": "narrow", "as": "short", "keep": 2, "init": "fresh"})
    assert fresh.problems({"narrow": pretrained})[0][0] == "init"


def test_the_shape_says_the_widths_to_come() -> None:
    model = LlmConfig(layers=4, hidden=32, heads=4, ffn=64)
    shape = config_for(ffn=0.5, heads=2, hidden=16).shape({"source": Shape("checkpoint", 4, model)})
    assert shape.layers == 4 and isinstance(shape.model, LlmConfig) and shape.narrowed
    assert (shape.model.hidden, shape.model.heads, shape.model.ffn, shape.model.head_size) == (16, 2, 32, 8)
    unknown = config_for(ffn=99999).shape({"source": Shape("checkpoint", None, LlmConfig(backbone="x"))})
    assert unknown.model == LlmConfig(backbone="x")
    assert config_for().shape({}).model is None


def test_widths_that_cannot_be_are_told_once() -> None:
    known = {"source": Shape("checkpoint", 4, LlmConfig(layers=4, hidden=32, heads=4))}
    first, second = config_for(heads=0.1), config_for(kv_heads=1)
    assert first.problems(known)[0][0] == "heads"
    assert second.problems({"source": first.shape(known)}) == []
