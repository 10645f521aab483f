"""What the stage quantize refuses, and that nothing is touched then."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from compress.depth_profile import DepthProfileConfig
from compress.depth_profile import run as profile
from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune
from compress.quantize import run
from compress.sparsify import SparsifyConfig
from compress.sparsify import run as sparsify
from compress.width import PruneWidthConfig
from compress.width import run as prune_width
from recommender.data.prepared import Prepared
from recommender.errors import InputError, StageError
from recommender.files import folder_digest
from recommender.models.config import LlmConfig, PopularityConfig, SasrecConfig
from recommender.stage import Bound, Shape
from recommender.training.stage import TrainConfig
from recommender.training.stage import run as train
from recommender.warm_start import AdaptConfig
from recommender.warm_start import run as adapt

from .conftest import MakeContext, train_tiny, write_log
from .test_quantize import config_for, quantize


def test_without_bitsandbytes_its_formats_say_which_extra_brings_it(
    teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    context = make_context("refused")
    with pytest.raises(InputError, match=r"recpress\[quantize\]"):
        run(config_for(scheme="nf4"), {"source": teacher}, context)
    assert not (context.folder / "checkpoint").exists()


def test_the_original_is_not_touched(teacher: Bound, make_context: MakeContext) -> None:
    before = folder_digest(teacher.path)
    quantize(teacher, make_context, scheme="int4", method="gptq", item_table="int4", sensitivity=True)
    assert folder_digest(teacher.path) == before


def test_quantizing_twice_is_refused_before_and_while_running(
    teacher: Bound, make_context: MakeContext
) -> None:
    small, _ = quantize(teacher, make_context)
    known = {"source": Shape("checkpoint", model=LlmConfig(layers=4), quantized="int8-dynamic")}
    assert config_for().problems(known)[0][1].startswith("'source' is quantized already (int8-dynamic)")
    before = folder_digest(small.path)
    with pytest.raises(InputError, match=r"quantize\.of: 'source' is quantized already"):
        quantize(small, make_context, "twice")
    assert folder_digest(small.path) == before


def test_stages_that_would_leave_the_grid_refuse_a_quantized_checkpoint(
    teacher: Bound, make_context: MakeContext
) -> None:
    small, _ = quantize(teacher, make_context)
    configs = [
        (PruneDepthConfig.model_validate({"of": "small", "as": "x", "keep": 2}), prune),
        (TrainConfig.model_validate({"stage": "train", "start_from": "small", "as": "x"}), train),
        (AdaptConfig.model_validate({"stage": "adapt", "of": "small", "as": "x"}), adapt),
        (SparsifyConfig.model_validate({"of": "small", "as": "x"}), sparsify),
        (DepthProfileConfig.model_validate({"stage": "depth-profile", "of": "small", "as": "x"}), profile),
        (PruneWidthConfig.model_validate({"of": "small", "as": "x", "ffn": 0.5}), prune_width),
    ]
    known = {"small": Shape("checkpoint", layers=4, model=LlmConfig(layers=4), quantized="int8-dynamic")}
    for config, stage in configs:
        ((_, told),) = config.problems(known)  # type: ignore[attr-defined]
        assert "would leave its grid" in told
        with pytest.raises(InputError, match="would leave its grid"):
            stage(config, {"small": small}, make_context(config.stage))  # type: ignore[operator]


def test_an_unknown_matrix_is_named_with_the_nearest(teacher: Bound, make_context: MakeContext) -> None:
    scheme = {"matrices": {"0.mlp.down_prj": {"weights": "int8"}}}
    with pytest.raises(InputError, match=r"no matrix '0\.mlp\.down_prj' \(did you mean '0\.mlp\.down_proj'"):
        quantize(teacher, make_context, scheme=scheme)
    with pytest.raises(InputError, match=r"no matrix '9\.\*'"):
        quantize(teacher, make_context, "b", scheme={"matrices": {"9.*": {"weights": "int8"}}})
    with pytest.raises(InputError, match="quantizes nothing"):
        quantize(teacher, make_context, "c", scheme={"matrices": {"*": {"weights": "fp32"}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "int8-dynamc"}, "did you mean 'int8-dynamic'"),
        ({"scheme": "/nowhere/mine.yaml"}, "cannot read the scheme file /nowhere/mine.yaml"),
        ({"scheme": "mine.txt"}, "no scheme 'mine.txt'"),
        ({"scheme": {"matrices": {"a": {"weights": "int5"}}}}, "weights"),
        ({"scheme": "nf4", "method": "gptq"}, "rounded by bitsandbytes"),
        ({"group": 24}, "16, 32, 64, 128 or 256"),
        ({"kl_budget": -1}, "kl_budget"),
        ({"budget": 0.01}, "budget"),
        ({"percentile": 101}, "percentile"),
        ({"calibration_users": 0}, "calibration_users"),
    ],
)
def test_what_is_no_option_is_no_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_for(**values)


def test_a_scheme_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{")
    with pytest.raises(ValidationError, match="cannot read the scheme file"):
        config_for(scheme=str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["body.blocks.1.up.weight", "items.weight", "final_norm.bias"])
def test_nan_weights_are_refused_and_named(
    name: str, sasrec: Bound, tmp_path: Path, make_context: MakeContext
) -> None:
    broken = Bound("broken", "checkpoint", tmp_path / "broken", tmp_path)
    shutil.copytree(sasrec.path, broken.path)
    weights = load_file(broken.path / "model.safetensors")
    weights[name].reshape(-1)[3] = float("nan")
    save_file(weights, broken.path / "model.safetensors")
    context = make_context("refused")
    with pytest.raises(InputError, match=f"NaN or infinite numbers: {re.escape(name)}"):
        run(config_for(), {"source": broken}, context)
    assert not (context.folder / "checkpoint").exists()


def test_popularity_has_nothing_to_quantize(
    tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    known = {"source": Shape("checkpoint", model=PopularityConfig())}
    assert config_for().problems(known) == [("of", "'source' has no matrices to quantize")]
    popularity, _ = train_tiny(tmp_path / "popularity", prepared, {"kind": "popularity"})
    with pytest.raises(InputError, match="no matrices to quantize"):
        quantize(popularity, make_context)


def test_projections_of_a_model_that_has_none_are_refused(sasrec: Bound, make_context: MakeContext) -> None:
    known = {"source": Shape("checkpoint", model=SasrecConfig())}
    told = ("projections", "'source' has no projections around its body: leave this out")
    assert config_for(projections=True).problems(known) == [told]
    assert (
        config_for(projections=True).problems({"source": Shape("checkpoint", model=LlmConfig(layers=2))})
        == []
    )
    with pytest.raises(InputError, match=r"quantize\.projections: 'source' has no projections"):
        quantize(sasrec, make_context, projections=True)


def test_a_checkpoint_of_another_data_set_is_refused(
    tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    other = write_log(tmp_path / "other", prefix="x")
    with pytest.raises(InputError, match="another data set"):
        run(config_for(), {"source": teacher}, make_context("refused", prepared=other))


def test_a_missing_file_is_refused_where_it_is_read(teacher: Bound, make_context: MakeContext) -> None:
    with pytest.raises(InputError, match=r"cannot read the scheme file nowhere\.yaml"):
        quantize(teacher, make_context, scheme="nowhere.yaml")


def test_a_budget_that_leaves_nothing_to_quantize_is_an_error(
    teacher: Bound, make_context: MakeContext
) -> None:
    context = make_context("refused")
    with pytest.raises(StageError, match="no matrix can be held in fewer bits for a divergence of 0 nats"):
        run(config_for(scheme="mixed", kl_budget=0.0), {"source": teacher}, context)
    assert not (context.folder / "checkpoint").exists()


def test_an_item_table_that_is_beyond_the_budget_alone_is_an_error(
    teacher: Bound, make_context: MakeContext
) -> None:
    context = make_context("refused")
    with pytest.raises(StageError, match=r"the item table alone, in int4, takes .* of the budget of 1e-06"):
        run(config_for(scheme="mixed", kl_budget=1e-6, item_table="int4"), {"source": teacher}, context)
    assert not (context.folder / "checkpoint").exists()
