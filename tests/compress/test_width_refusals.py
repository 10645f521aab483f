"""What prune-width refuses, before and while it runs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from torch import nn

from compress.narrowing.cut import narrow, widths_in
from compress.sparsify import SparsifyConfig
from compress.sparsify import run as sparsify
from compress.width import PruneWidthConfig, run, zeros_first
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.models.config import ItemVectorsConfig, LlmConfig, PopularityConfig, SasrecConfig
from recommender.models.llm import LlmRecommender
from recommender.sparsity import Zeros
from recommender.stage import Bound, Shape

from .conftest import MakeContext, bound, train_tiny, write_log
from .narrowed import changed, config_for, importances, prune, shape_of
from .narrowing.test_families import built, drawn

WRONG = [
    ({"ffn": 49}, "ffn", "cannot keep 49: there are 48"),
    ({"heads": 3}, "heads", "cannot keep 3: there are 2"),
    ({"hidden": 17}, "hidden", "cannot keep 17: there are 16"),
    ({"hidden": 9}, "hidden", "2 does not divide 9"),
    ({"ffn": 0.1}, "ffn", "4 is too narrow"),
]


@pytest.mark.parametrize(("targets", "place", "message"), WRONG)
def test_impossible_widths_are_refused_before_and_while_running(
    targets: dict[str, Any], place: str, message: str, teacher: Bound, make_context: MakeContext
) -> None:
    ((where, wrong),) = config_for(**targets).problems({"source": shape_of(teacher)})
    assert where == place and message in wrong
    context = make_context("refused")
    with pytest.raises(InputError, match=message) as error:
        run(config_for(**targets), {"source": teacher}, context)
    assert error.value.exit_code == 2 and not (context.folder / "checkpoint").exists()


@pytest.mark.parametrize(
    "targets", [{"ffn": 0}, {"ffn": -3}, {"heads": 1.5}, {"hidden": 0.0}, {"hidden": 1.0}, {"ffn": "half"}]
)
def test_targets_that_no_model_could_have_are_no_config(targets: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config_for(**targets)


def test_a_stage_that_cuts_nothing_is_no_config() -> None:
    with pytest.raises(ValidationError, match="nothing to cut"):
        PruneWidthConfig.model_validate({"of": "source", "as": "narrow"})


def test_a_sparse_body_is_refused_before_and_while_running(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    planned = {"source": replace(shape_of(teacher), sparsity=Zeros("2:4", 0.5))}
    assert config_for(ffn=0.5).problems(planned) == [("of", zeros_first("source"))]
    context = make_context("sparse")
    sparsify(SparsifyConfig.model_validate({"of": "source", "as": "sparse"}), {"source": teacher}, context)
    with pytest.raises(InputError, match="'source' is sparse"):
        prune(bound("sparse", context.folder), make_context, ffn=0.5)


BODILESS = [
    (PopularityConfig(), "popularity, which has no blocks"),
    (ItemVectorsConfig(), "item-vectors, which has no blocks"),
    (SasrecConfig(), "sasrec, whose feed-forward is as wide as its item vectors"),
]


@pytest.mark.parametrize(("model", "message"), BODILESS)
def test_what_is_no_decoder_is_refused_at_plan_time(model: Any, message: str) -> None:
    ((place, wrong),) = config_for().problems({"source": Shape("checkpoint", model=model)})
    assert place == "of" and message in wrong
    assert config_for().problems({}) == [] == config_for().problems({"source": Shape("checkpoint")})


def test_what_is_no_decoder_is_refused_while_running(
    tmp_path: Path, sasrec: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    with pytest.raises(InputError, match="cannot be narrowed"):
        prune(sasrec, make_context)
    popularity, _ = train_tiny(tmp_path / "popularity", prepared, {"kind": "popularity"})
    with pytest.raises(InputError, match="no blocks to narrow"):
        prune(popularity, make_context)


@importances
def test_weights_that_are_no_numbers_are_refused(
    importance: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    def spoil(model: LlmRecommender) -> None:
        model.body.blocks[2].mlp.up_proj.weight[5, 3] = torch.nan

    spoiled = changed(teacher, prepared, f"spoiled-{importance}", spoil)
    context = make_context("refused")
    with pytest.raises(InputError, match=r"NaN or infinite numbers: .*layers\.2\.mlp\.up_proj"):
        run(config_for(importance=importance), {"source": spoiled}, context)
    assert not (context.folder / "checkpoint").exists()


def test_checkpoint_of_another_data_set_is_refused(
    tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    other = write_log(tmp_path / "other", prefix="x")
    with pytest.raises(InputError, match="another data set"):
        run(config_for(), {"source": teacher}, make_context("refused", prepared=other))


def test_weights_of_a_torn_checkpoint_are_refused(
    tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    import shutil

    torn = tmp_path / "torn"
    shutil.copytree(teacher.path, torn / "checkpoint")
    file = torn / "checkpoint" / "backbone" / "model.safetensors"
    weights = load_file(file)
    del weights["layers.0.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks weights"):
        prune(bound("torn", torn), make_context)


def test_a_family_that_is_not_known_is_refused_at_plan_time(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    foreign = Shape("checkpoint", model=LlmConfig(backbone=str(tmp_path)))
    ((place, wrong),) = config_for().problems({"source": foreign})
    assert place == "of" and "family 'mamba' cannot be cut in width" in wrong and "llama" in wrong
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert config_for().problems({"source": foreign}) == []
    assert config_for().problems({"source": Shape("checkpoint", model=LlmConfig(backbone="some/name"))}) == []


def test_the_config_is_read_without_torch() -> None:
    code = (
        "import sys, compress.width\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_weight_that_the_family_does_not_have_is_refused() -> None:
    model = built("llama")
    model.body.blocks[0].mlp.extra = nn.Linear(24, 24)
    kept, after = drawn(model, {"ffn": 12})
    with pytest.raises(InputError, match=r"mlp\.extra"):
        narrow(model, kept, after)


def test_another_family_is_refused_by_name() -> None:
    model = built("llama")
    model.body.config.model_type = "mamba"
    with pytest.raises(InputError, match="family 'mamba' cannot be cut in width"):
        widths_in(model.body.config)


def test_stretched_positions_are_tied_to_the_width_of_heads() -> None:
    model = built("phi3")
    model.body.config.rope_parameters = {"rope_type": "longrope", "short_factor": [1.0] * 3}
    kept, after = drawn(model, {"heads": 2})
    with pytest.raises(InputError, match="rotary positions"):
        narrow(model, kept, after)
