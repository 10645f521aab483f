"""The stage quantize: on a grid that is written down, plain when reloaded, measured, clear about what it
refuses."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress.quantization.gptq import row_errors
from compress.quantization.grid import on_grid
from compress.quantization.inputs import hessians
from compress.quantize import QuantizeConfig, run
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.models.config import LlmConfig
from recommender.models.linears import PROJECTIONS, body_linears, quantizable
from recommender.quantization_scheme import (
    INT8,
    ITEM_TABLE,
    TABLE_LEVELS,
    MatrixScheme,
    QuantizationScheme,
    read_quantization,
    whole_numbers,
)
from recommender.stage import Bound, Shape

from .conftest import MakeContext, bound
from .grown import with_outliers
from .test_prune_depth import user_vectors

OURS = ("int8-dynamic", "int8-static", "int4")
BITSANDBYTES = ("nf4", "llm-int8")


def config_for(**values: Any) -> QuantizeConfig:
    entries = {"of": "source", "as": "small", "scheme": "int8-dynamic", "calibration_users": 60}
    return QuantizeConfig.model_validate(entries | values)


def quantize(
    source: Bound, make_context: MakeContext, name: str = "small", **values: Any
) -> tuple[Bound, Mapping[str, Any]]:
    context = make_context(name)
    metrics = run(config_for(**values), {"source": source}, context).metrics
    return bound(name, context.folder), metrics


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("scheme", OURS)
@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_reloaded_it_lies_on_the_grid_that_it_says_and_holds_the_numbers_of_before(
    source: str, scheme: str, method: str, request: pytest.FixtureRequest, make_context: MakeContext
) -> None:
    trained: Bound = request.getfixturevalue(source)
    small, metrics = quantize(trained, make_context, scheme=scheme, method=method, item_table="int8")
    found = read_quantization(small.path)
    assert found is not None and found.scheme.summary == scheme == read_info(small.path).quantized
    model = load_checkpoint(small.path)
    linears = body_linears(model.bodies()["user"])
    assert set(found.scheme.matrices) == set(linears) and metrics["matrices_quantized"] == len(linears)
    for name, matrix in found.scheme.matrices.items():
        assert matrix.levels is not None
        weight, scales = linears[name].matrix(), found.scales[name]
        whole_numbers(weight.numpy(), scales, matrix.levels, matrix.group, name)
        again = on_grid(weight, torch.from_numpy(scales), matrix.levels, matrix.group)
        assert torch.equal(again, weight)  # rounding to the recorded grid once more
    table = model.item_table().detach().numpy()
    whole_numbers(table, found.scales[ITEM_TABLE], TABLE_LEVELS["int8"], None, ITEM_TABLE)
    assert found.scheme.method == method == metrics["method"]


@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_gptq_answers_the_calibration_inputs_better_than_rounding_does(
    source: str, request: pytest.FixtureRequest, prepared: Prepared, make_context: MakeContext
) -> None:
    from compress.quantization.apply import Work

    trained: Bound = request.getfixturevalue(source)
    model = load_checkpoint(trained.path)
    work = Work.on(model, make_context("work"), users=60, name="teacher")
    first = {name: linear for name, linear in work.linears.items() if linear.block == 0}
    inputs = hessians(model, first, work.calibration)
    lost = {}
    for method in ("rtn", "gptq"):
        small, _ = quantize(trained, make_context, method, scheme="int4", method=method, group=None)
        after = body_linears(load_checkpoint(small.path).bodies()["user"])
        lost[method] = sum(
            float(row_errors((linear.matrix() - after[name].matrix()).double(), inputs[name]).sum())
            for name, linear in first.items()
        )
    assert lost["gptq"] < 0.9 * lost["rtn"]


def test_static_ranges_are_measured_and_a_percentile_is_narrower(
    teacher: Bound, make_context: MakeContext
) -> None:
    ranges = []
    for percentile in (100.0, 95.0):
        name = f"p{percentile:g}"
        small, _ = quantize(teacher, make_context, name, scheme="int8-static", percentile=percentile)
        found = read_quantization(small.path)
        assert found is not None
        ranges.append({name: matrix.input_range for name, matrix in found.scheme.matrices.items()})
    for name, wide in ranges[0].items():
        narrow = ranges[1][name]
        assert wide is not None and narrow is not None
        assert 0 < narrow[1] < wide[1] and narrow[0] == -narrow[1]


def test_losses_and_bytes_stand_in_the_metrics(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    source = with_outliers(teacher, prepared)
    _, eight = quantize(source, make_context, "eight", scheme="int8-dynamic")
    _, four = quantize(source, make_context, "four", scheme="int4", group=None, item_table="int4")
    assert abs(eight["validation_loss"] - eight["validation_loss_before"]) < 0.05
    assert eight["validation_loss"] != eight["validation_loss_weights"]  # inputs are rounded, too
    assert four["validation_loss"] == four["validation_loss_weights"]
    assert four["validation_loss"] > eight["validation_loss"] + 0.01
    assert four["matrix_bytes"] < 0.25 * four["matrix_bytes_before"] < eight["matrix_bytes_before"]
    assert 0.25 < eight["matrix_bytes"] / eight["matrix_bytes_before"] < 0.5  # scales weigh, at width 16
    assert eight["item_table_bytes"] == eight["item_table_bytes_before"]
    assert four["item_table_bytes"] < 0.5 * four["item_table_bytes_before"]


def test_the_scheme_that_was_written_gives_the_same_checkpoint_again(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    values = {"scheme": "mixed", "kl_budget": 0.02, "method": "gptq", "item_table": "int8"}
    small, _ = quantize(teacher, make_context, **values)
    file = small.stage_folder / "scheme.yaml"
    again, _ = quantize(teacher, make_context, "again", scheme=str(file))
    assert read_quantization(again.path).scheme == read_quantization(small.path).scheme  # type: ignore[union-attr]
    assert torch.equal(user_vectors(again, prepared), user_vectors(small, prepared))


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("scheme", OURS)
def test_projections_are_quantized_where_they_are_asked_for(
    scheme: str, method: str, teacher: Bound, make_context: MakeContext
) -> None:
    values = {"scheme": scheme, "method": method, "sensitivity": True}
    without, plain = quantize(teacher, make_context, "without", **values)
    small, metrics = quantize(teacher, make_context, projections=True, **values)
    found = read_quantization(small.path)
    assert found is not None and set(found.scheme.matrices) >= set(PROJECTIONS)
    before, after = (quantizable(load_checkpoint(each.path)) for each in (teacher, small))
    for name in PROJECTIONS:
        matrix, weight = found.scheme.matrices[name], after[name].matrix()
        assert matrix.levels is not None and not torch.equal(weight, before[name].matrix())
        whole_numbers(weight.numpy(), found.scales[name], matrix.levels, matrix.group, name)
        assert metrics["sensitivity"][name][scheme]["kl"] > 0
        assert (matrix.input_range is not None) == (scheme == "int8-static")
    sizes = {name: before[name].matrix().numel() for name in PROJECTIONS}
    assert plain["float_weights"] == sizes and metrics["float_weights"] == {}
    assert metrics["matrices"] == metrics["matrices_quantized"] == plain["matrices"] + 2
    assert set(read_quantization(without.path).scales).isdisjoint(PROJECTIONS)  # type: ignore[union-attr]


def test_a_scheme_may_name_projections_by_their_names_but_patterns_do_not_mean_them(
    teacher: Bound, make_context: MakeContext
) -> None:
    document: dict[str, Any] = {"matrices": {"*": {"weights": "int8"}}}
    _, body = quantize(teacher, make_context, "body", scheme=document)
    _, asked = quantize(teacher, make_context, "asked", scheme=document, projections=True)
    document["matrices"]["output_projection"] = {"weights": "int4"}
    small, named = quantize(teacher, make_context, "named", scheme=document)
    assert list(body["float_weights"]) == [*PROJECTIONS] and not asked["float_weights"]
    assert list(named["float_weights"]) == ["input_projection"]
    again, _ = quantize(teacher, make_context, "again", scheme=str(small.stage_folder / "scheme.yaml"))
    assert read_quantization(again.path).scheme == read_quantization(small.path).scheme  # type: ignore[union-attr]


def test_a_mix_may_count_projections(teacher: Bound, make_context: MakeContext) -> None:
    small, metrics = quantize(teacher, make_context, scheme="mixed", projections=True, kl_budget=10.0)
    found = read_quantization(small.path)
    assert found is not None and found.scheme.matrices["input_projection"].kind == "int4"
    assert set(metrics["sensitivity"]) == set(found.scheme.matrices) >= set(PROJECTIONS)
    assert metrics["damage"]["kl"] == pytest.approx(metrics["kl_measured"], rel=1e-4)


def test_an_edited_scheme_is_what_is_done(teacher: Bound, tmp_path: Path, make_context: MakeContext) -> None:
    bits = {"*": "int8", "*.mlp.*": "int4", "0.mlp.up_proj": "fp32"}
    document = {"matrices": {name: {"weights": weights} for name, weights in bits.items()}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    small, metrics = quantize(teacher, make_context, scheme=str(tmp_path / "mine.yaml"))
    inline, _ = quantize(teacher, make_context, "inline", scheme=document)
    before, after = (body_linears(load_checkpoint(each.path).bodies()["user"]) for each in (teacher, small))
    assert torch.equal(before["0.mlp.up_proj"].matrix(), after["0.mlp.up_proj"].matrix())
    found = read_quantization(small.path)
    assert found is not None
    assert {name: found.scheme.matrices[name].kind for name in ("0.self_attn.q_proj", "1.mlp.up_proj")} == {
        "0.self_attn.q_proj": "int8", "1.mlp.up_proj": "int4",
    }  # fmt: skip
    assert found.scales.keys() == {name for name in before if name != "0.mlp.up_proj"}
    assert found.scheme == read_quantization(inline.path).scheme  # type: ignore[union-attr]
    assert metrics["matrices_quantized"] == len(before) - 1


def test_a_scheme_file_is_part_of_the_config_so_that_an_edit_runs_the_stage_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"matrices": {"0.a": {"weights": "int8"}}}')
    first = config_for(scheme=str(file)).model_dump(mode="json", by_alias=True)
    file.write_text('{"matrices": {"0.a": {"weights": "int4"}}}')
    assert config_for(scheme=str(file)).model_dump(mode="json", by_alias=True) != first
    assert first["scheme"]["matrices"]["0.a"]["weights"] == "int8"
    assert QuantizeConfig.model_validate(first) == QuantizeConfig.model_validate(first)


def test_a_file_beside_the_recipe_is_found_from_there_and_read_when_it_is_checked(
    teacher: Bound, tmp_path: Path
) -> None:
    from recpress.recipe import load_recipe

    (tmp_path / "mine.yaml").write_text("matrices: {'*': {weights: int4, group: 16}}")
    (tmp_path / "recipe.yaml").write_text(
        "name: x\ndata: {source: synthetic}\n"
        f"inputs: {{source: {teacher.path}}}\n"
        "stages:\n"
        "  - {stage: quantize, of: source, as: small, scheme: mine.yaml}\n"
        "  - {stage: export, of: small, as: onnx, variants: [quantized]}\n"
    )
    (stage, _) = load_recipe(tmp_path / "recipe.yaml").recipe.stages
    assert isinstance(stage, QuantizeConfig)
    assert stage.scheme == QuantizationScheme(matrices={"*": MatrixScheme(weights="int4", group=16)})


def test_a_relative_file_is_read_where_the_stage_runs(
    teacher: Bound, tmp_path: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"matrices": {"*": {"weights": "int8"}}}')
    small, _ = quantize(teacher, make_context, scheme="mine.json")
    assert read_info(small.path).quantized == "int8"
    assert config_for(scheme="mine.json").shape({}).quantized == "of a file"


def test_the_item_table_alone_can_be_quantized(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    small, metrics = quantize(teacher, make_context, scheme={"matrices": {}, "item_table": "int8"})
    assert read_info(small.path).quantized == "items-int8" and metrics["matrices_quantized"] == 0
    table = load_checkpoint(small.path).item_table().detach()
    scales = read_quantization(small.path).scales[ITEM_TABLE]  # type: ignore[union-attr]
    assert torch.equal(on_grid(table, torch.from_numpy(scales), INT8), table) and not table[0].any()


@pytest.mark.parametrize("scheme", BITSANDBYTES)
def test_formats_of_bitsandbytes_are_what_it_makes_of_every_matrix(
    scheme: str, teacher: Bound, make_context: MakeContext
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs recpress[quantize]")
    from compress.quantization.bits_and_bytes import as_llm_int8, as_nf4

    small, metrics = quantize(teacher, make_context, scheme=scheme)
    before, after = (body_linears(load_checkpoint(each.path).bodies()["user"]) for each in (teacher, small))
    make = {"nf4": as_nf4, "llm-int8": as_llm_int8}[scheme]
    for name, linear in before.items():
        assert torch.equal(after[name].matrix(), make(linear.matrix()))
    found = read_quantization(small.path)
    assert found is not None and not found.scales and found.scheme.summary == scheme
    assert 0 <= metrics["validation_loss"] - metrics["validation_loss_before"] + 0.1 < 1


def test_the_shape_says_what_later_stages_must_know() -> None:
    known = {"source": Shape("checkpoint", layers=4, model=LlmConfig(layers=4))}
    shape = config_for(scheme="int8-static").shape(known)
    assert (shape.layers, shape.model, shape.quantized) == (4, LlmConfig(layers=4), "int8-static")
    assert config_for(scheme="mixed").shape(known).quantized == "mixed"
    scheme = QuantizationScheme(matrices={"*": MatrixScheme(weights="int4")})
    assert config_for(scheme=scheme).shape({}).quantized == "int4"
    only_table = config_for(scheme={"matrices": {}}, item_table="int8")
    assert only_table.shape({}).quantized == "items-int8"


def test_the_config_is_read_without_torch() -> None:
    code = (
        "import sys, compress.quantize\n"
        "heavy = {'torch', 'transformers', 'bitsandbytes'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
