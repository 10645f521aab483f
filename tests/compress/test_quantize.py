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
from .grown import with_one_outlier, with_outliers
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


def test_sensitivity_is_measured_for_each_matrix_and_noted_in_the_file(
    teacher: Bound, make_context: MakeContext
) -> None:
    small, metrics = quantize(teacher, make_context, scheme="int4", group=None, sensitivity=True)
    names = set(body_linears(load_checkpoint(small.path).bodies()["user"]))
    assert set(metrics["sensitivity"]) == names
    assert all(set(kinds) == {"int4"} for kinds in metrics["sensitivity"].values())
    worst = max(metrics["sensitivity"], key=lambda name: metrics["sensitivity"][name]["int4"]["kl"])
    noted = [line for line in (small.stage_folder / "scheme.yaml").read_text().splitlines() if line[0] == "#"]
    assert noted[2].startswith("# KL divergence of a matrix alone")
    assert noted[3].startswith(f"#   {worst}: int4 0.0") and "+-" in noted[3]


def test_sensitivity_is_that_of_the_method_that_will_be_used(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    """Of one matrix alone it is what quantizing this matrix then does."""
    source, told = with_outliers(teacher, prepared), {}
    scheme = {"matrices": {"1.mlp.up_proj": {"weights": "int4"}}}
    for method in ("rtn", "gptq"):
        _, metrics = quantize(source, make_context, method, scheme=scheme, method=method, sensitivity=True)
        alone = metrics["sensitivity"]["1.mlp.up_proj"]["int4"]
        told[method] = alone["kl"]
        rise = metrics["validation_loss_weights"] - metrics["validation_loss_before"]
        assert alone["loss_rise"] == pytest.approx(rise, abs=1e-6)
        assert alone == {key: metrics["damage"][key] for key in alone}
    assert told["gptq"] < told["rtn"]


def test_the_matrix_that_was_made_hard_to_round_is_the_worst_by_far(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    """Its rows have one entry that sets the scale of all others, so in 4 bits they are all but lost."""
    source = with_one_outlier(teacher, prepared, block=2)
    _, metrics = quantize(source, make_context, scheme="int4", group=None, sensitivity=True)
    alone = {name: kinds["int4"]["kl"] for name, kinds in metrics["sensitivity"].items()}
    assert alone.pop("2.mlp.down_proj") > 3 * max(alone.values())


def test_fewer_bits_move_the_answers_more_and_the_mix_lies_between(
    teacher: Bound, make_context: MakeContext
) -> None:
    found, weights = {}, {}
    every: dict[str, dict[str, Any]] = {
        "eight": {"scheme": "int8-dynamic"},
        "four": {"scheme": "int4"},
        "rows": {"scheme": "int4", "group": None},
    }
    for name, values in every.items():
        _, metrics = quantize(teacher, make_context, name, **values)
        found[name], weights[name] = metrics["damage"]["kl"], metrics["matrix_bytes"]
    assert 0 < found["eight"] < found["four"] < found["rows"]
    budget = 0.5 * (found["eight"] + found["four"])
    small, mixed = quantize(teacher, make_context, scheme="mixed", kl_budget=budget)
    assert read_info(small.path).quantized == "int4+int8-dynamic"
    assert weights["four"] < mixed["matrix_bytes"] < weights["eight"]
    assert found["eight"] < mixed["damage"]["kl"] <= budget


@pytest.mark.parametrize(
    ("budget", "method"), [(1e-7, "rtn"), (0.002, "rtn"), (100.0, "rtn"), (0.002, "gptq")]
)
def test_what_a_mixed_scheme_writes_keeps_to_its_budget(
    budget: float, method: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    """The item table is written, too, and counts."""
    source = with_outliers(teacher, prepared)
    values = {"scheme": "mixed", "group": None, "method": method, "kl_budget": budget}
    if budget > 1e-3:
        values["item_table"] = "int8"
    small, metrics = quantize(source, make_context, **values)
    assert metrics["kl_measured"] <= budget == metrics["kl_budget"]
    assert metrics["damage"]["kl"] == pytest.approx(metrics["kl_measured"], rel=1e-4, abs=1e-9)
    assert metrics["measurements"] <= 8
    found = read_quantization(small.path)
    assert found is not None and set(found.scheme.kinds) <= {"int4", "int8-dynamic"}
    if budget == 100.0:
        assert found.scheme.kinds == ("int4",)
    if budget == 0.002:
        assert found.scheme.kinds == ("int4", "int8-dynamic")
    (line,) = [
        line for line in (small.stage_folder / "scheme.yaml").read_text().splitlines() if "kl_budget" in line
    ]
    assert line.startswith(f"# kl_budget {budget:g} nats, rounded by {method}: predicted ")


def test_damage_stands_beside_the_losses_with_its_standard_errors(
    teacher: Bound, make_context: MakeContext
) -> None:
    _, metrics = quantize(teacher, make_context, scheme="int4", group=None, item_table="int4")
    damage = metrics["damage"]
    assert 0 < damage["kl_error"] < damage["kl"] and damage["loss_rise_error"] > 0
    rise = metrics["validation_loss"] - metrics["validation_loss_before"]
    assert damage["loss_rise"] == pytest.approx(rise, abs=1e-5)
    assert 0 < damage["ndcg@10_before"] <= 1 and -1 <= damage["ndcg@10_change"] <= 1
    assert damage["ndcg@10_change_error"] > 0


def test_of_a_single_user_there_is_no_standard_error(teacher: Bound, make_context: MakeContext) -> None:
    _, metrics = quantize(teacher, make_context, calibration_users=1)
    errors = [value for key, value in metrics["damage"].items() if key.endswith("_error")]
    assert errors == [None, None, None] and metrics["damage"]["kl"] >= 0


def test_a_budget_within_the_noise_is_told(
    teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "compress.quantization.damage._mean_and_error", lambda values: (float(values.mean()), 0.5)
    )
    told: list[Any] = []
    context = make_context("small", progress=lambda event, values: told.append(values))
    config = config_for(scheme="mixed", kl_budget=0.4)
    metrics = run(config, {"source": teacher}, context).metrics
    assert metrics["warning"].startswith("kl_budget 0.4 is less than the standard error")
    assert {"text": f"WARNING: {metrics['warning']}"} in told
    assert f"# WARNING: {metrics['warning']}" in (context.folder / "scheme.yaml").read_text()
    monkeypatch.undo()
    _, clear = quantize(teacher, make_context, "clear", scheme="mixed", kl_budget=0.4)
    assert "warning" not in clear


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
