"""Depth profiles that cannot be had are refused, before and while running."""

from pathlib import Path
from typing import Any

import pytest

from compress.depth_profile import run
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.models.config import LlmConfig, PopularityConfig
from recommender.stage import Bound, Shape

from .conftest import MakeContext, train_tiny, write_log
from .test_depth_profile import config_for, profile_of

WRONG = [
    ({"keep": [1, 2, 1]}, "keep", "1 blocks are listed more than once"),
    ({"keep": []}, "keep", "an empty list names no depth; null stands for 1, 2, 4, ... and all"),
    ({"keep": [2, 5]}, "keep", "cannot keep 5 of the 4 blocks of 'source'"),
]


@pytest.mark.parametrize(("values", "field", "message"), WRONG)
def test_impossible_depths_are_refused_before_and_while_running(
    values: dict[str, Any], field: str, message: str, teacher: Bound, make_context: MakeContext
) -> None:
    known = {"source": Shape("checkpoint", layers=4)}
    assert config_for(**values).problems(known) == [(field, message)]
    context = make_context("refused")
    with pytest.raises(InputError, match=f"depth-profile.{field}: {message}"):
        run(config_for(**values), {"source": teacher}, context)
    assert not (context.folder / "profile").exists()


@pytest.mark.parametrize("keep", [[0], [-1, 2], 2, [True], ["1"], [1.0], "all"])
def test_depths_that_no_body_could_have_are_no_config(keep: Any) -> None:
    with pytest.raises(ValueError, match="keep"):
        config_for(keep=keep)


def test_repeats_are_seen_without_knowing_the_source_and_depth_is_left_to_the_run() -> None:
    assert config_for(keep=[9]).problems({}) == config_for(keep=[9]).problems({"source": Shape("checkpoint")})
    assert config_for(keep=[9]).problems({}) == []
    assert config_for(keep=[3, 3]).problems({}) == [("keep", "3 blocks are listed more than once")]
    assert config_for().shape({}) == Shape("profile")


def test_a_model_without_blocks_is_refused(
    tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    known = {"source": Shape("checkpoint", model=PopularityConfig())}
    assert config_for().problems(known) == [("of", "'source' has no blocks to remove")]
    popularity, _ = train_tiny(tmp_path / "popularity", prepared, {"kind": "popularity"})
    with pytest.raises(InputError, match=r"depth-profile\.of: 'source' has no blocks to remove"):
        profile_of(popularity, make_context("refused"))


def test_a_suffix_is_trained_at_the_last_position_only() -> None:
    model = LlmConfig(backbone="a/model", suffix="next item is")
    known = {"source": Shape("checkpoint", model=model)}
    assert config_for(retrain=True).problems(known)[0][0] == "positions"
    assert config_for(retrain=True, positions="last").problems(known) == []
    assert config_for().problems(known) == []


def test_a_checkpoint_of_another_data_set_is_refused(
    tmp_path: Path, teacher: Bound, make_context: MakeContext
) -> None:
    other = write_log(tmp_path / "other", prefix="x")
    with pytest.raises(InputError, match="another data set"):
        profile_of(teacher, make_context("refused", prepared=other))
