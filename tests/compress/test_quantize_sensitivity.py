"""What quantizing each matrix alone does, schemes chosen from it within a budget, the damage that is told."""

from typing import Any

import pytest

from compress.quantize import run
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.models.linears import body_linears
from recommender.quantization_scheme import read_quantization
from recommender.stage import Bound

from .conftest import MakeContext
from .grown import with_one_outlier, with_outliers
from .test_quantize import config_for, quantize


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
