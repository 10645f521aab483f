"""Distillation through the rounding: a quantized student learns and stays on its grid."""

from typing import Any

import pytest
import torch

from compress.calibration import sample, validation_loss
from compress.quantize import QuantizeConfig
from compress.quantize import run as run_quantize
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import folder_digest
from recommender.models.linears import quantizable
from recommender.quantization_scheme import (
    ITEM_TABLE,
    TABLE_LEVELS,
    read_quantization,
    read_scheme,
    whole_numbers,
)
from recommender.stage import Bound, Shape

from ..conftest import MakeContext, bound
from ..grown import with_outliers
from .runs import config_for, distill


def quantized(source: Bound, make_context: MakeContext, scheme: str = "int4", **values: Any) -> Bound:
    context = make_context(f"quantized-{scheme}")
    entries = {"of": source.name, "as": "small", "scheme": scheme, "group": None, "calibration_users": 60}
    run_quantize(QuantizeConfig.model_validate(entries | values), {source.name: source}, context)
    return bound("small", context.folder)


def on_its_grid(checkpoint: Bound) -> bool:
    """Whether every quantized matrix lies on the recorded grid (an error says so where not)."""
    found = read_quantization(checkpoint.path)
    assert found is not None
    model = load_checkpoint(checkpoint.path)
    for name, linear in quantizable(model).items():
        if name not in found.scheme.matrices and "projection" in name:
            continue
        matrix = found.scheme.matrices[name]
        assert matrix.levels is not None
        whole_numbers(linear.matrix().numpy(), found.scales[name], matrix.levels, matrix.group, name)
    if found.scheme.item_table != "fp32":
        levels, table = TABLE_LEVELS[found.scheme.item_table], model.item_table().detach().numpy()
        whole_numbers(table, found.scales[ITEM_TABLE], levels, None, ITEM_TABLE)
    return True


def loss(checkpoint: Bound, make_context: MakeContext) -> float:
    context, model = make_context("loss"), load_checkpoint(checkpoint.path)
    everyone = sample(context.prepared, context.split, users=10_000, max_length=10, seed=0)
    return validation_loss(model, everyone)(range(len(model.bodies()["user"].blocks)))


@pytest.mark.parametrize("method", ["logits", "slmrec", "none"])
def test_where_int4_hurts_training_through_the_rounding_mends_it(
    method: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    small = quantized(with_outliers(teacher, prepared), make_context, item_table="int4")
    before = folder_digest(teacher.path)
    student, metrics = distill(small, teacher, make_context("student"), method=method, epochs=6)
    whole, rounded, trained = (loss(each, make_context) for each in (teacher, small, student))
    assert rounded > whole + 0.05  # there is something to mend
    assert trained < rounded - 0.5 * (rounded - whole)
    assert on_its_grid(student) and folder_digest(teacher.path) == before
    assert read_scheme(student.path) == read_scheme(small.path)
    assert read_info(student.path).quantized == "int4" == read_info(student.path).about["quantized"]
    assert metrics["history"][-1]["loss"] < metrics["history"][0]["loss"]


def test_projections_are_trained_on_their_grids_too(teacher: Bound, make_context: MakeContext) -> None:
    small = quantized(teacher, make_context, projections=True)
    student, _ = distill(small, teacher, make_context("student"), method="logits", epochs=1)
    assert on_its_grid(student)
    found, before = read_quantization(student.path), read_quantization(small.path)
    assert found is not None and before is not None
    for name in ("input_projection", "output_projection"):
        assert (found.scales[name] != before.scales[name]).any()  # its steps were learnt


def test_off_the_grid_and_rounded_again_the_same_training_is_worth_less(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    small = quantized(with_outliers(teacher, prepared), make_context)
    through, _ = distill(small, teacher, make_context("through"), method="logits", epochs=6)
    off, _ = distill(small, teacher, make_context("off"), method="logits", epochs=6, fake_quantize=False)
    assert read_scheme(off.path) is None and read_info(off.path).quantized is None
    again = quantized(Bound("off", "checkpoint", off.path, off.stage_folder), make_context)
    assert loss(through, make_context) < loss(again, make_context)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static"])
def test_inputs_are_rounded_while_it_is_trained_and_validated(
    scheme: str, teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compress.quantization.simulation as simulation

    calls: list[str] = []
    plain = simulation.round_inputs

    def counted(matrix: Any) -> Any:
        round_ = plain(matrix)

        def rounding(given: torch.Tensor) -> torch.Tensor:
            calls.append(scheme)
            return round_(given)

        return rounding

    monkeypatch.setattr(simulation, "round_inputs", counted)
    small = quantized(teacher, make_context, scheme)
    calls.clear()
    student, _ = distill(small, teacher, make_context("student"), method="logits", epochs=1)
    assert calls and on_its_grid(student)


def test_the_checkpoint_of_a_killed_training_goes_on_to_the_same_weights(
    teacher: Bound, make_context: MakeContext
) -> None:
    small = quantized(teacher, make_context)
    whole, _ = distill(small, teacher, make_context("whole"), method="logits", epochs=2)

    class Killed(Exception):
        pass

    def kill(event: str, values: Any) -> None:
        if event == "step" and values["step"] == 6:
            raise Killed

    context = make_context("resumed", progress=kill)
    with pytest.raises(Killed):
        distill(small, teacher, context, method="logits", epochs=2, save_every_seconds=0)
    resumed, _ = distill(small, teacher, make_context("resumed"), method="logits", epochs=2)
    ours, theirs = (load_checkpoint(each.path).state_dict() for each in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    scales = [read_quantization(each.path).scales for each in (resumed, whole)]  # type: ignore[union-attr]
    assert all((scales[0][name] == scales[1][name]).all() for name in scales[1])


def known(quantized: str | None) -> dict[str, Shape]:
    return {
        "pruned": Shape("checkpoint", layers=4, quantized=quantized),
        "teacher": Shape("checkpoint", layers=4),
    }


def test_what_cannot_be_trained_through_is_refused_before_it_runs() -> None:
    (place, told), *rest = config_for().problems(known("nf4"))
    assert place == "of" and told.startswith("nf4 cannot be trained through") and not rest
    assert config_for(fake_quantize=False).problems(known("nf4")) == []
    assert config_for().problems(known("int4+int8-dynamic")) == []
    ((place, told),) = config_for(fake_quantize=True).problems(known(None))
    assert place == "fake_quantize" and "is not quantized" in told
    assert config_for(fake_quantize=True).problems(known("int4")) == []


def test_asking_for_a_grid_that_is_not_there_is_refused_while_running(
    teacher: Bound, make_context: MakeContext
) -> None:
    with pytest.raises(InputError, match="is not quantized"):
        distill(teacher, teacher, make_context("refused"), method="logits", fake_quantize=True)


def test_the_shape_keeps_the_scheme_unless_it_is_given_up() -> None:
    assert config_for().shape(known("int4")).quantized == "int4"
    assert config_for(fake_quantize=False).shape(known("int4")).quantized is None
