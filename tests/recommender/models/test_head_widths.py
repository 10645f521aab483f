"""Heads of a width of their own: which families can have them, and that they are what was asked for."""

import pytest
from pydantic import ValidationError

from recommender.models.build import build_model
from recommender.models.config import FAMILIES, HEADS_DIVIDE_HIDDEN, HEADS_FILL_HIDDEN, LlmConfig
from recommender.models.llm import LlmRecommender

FREE = [family for family in FAMILIES if family not in (*HEADS_FILL_HIDDEN, *HEADS_DIVIDE_HIDDEN)]


def sizes(family: str, **values: int) -> LlmConfig:
    return LlmConfig.model_validate({"family": family, "layers": 1, "item_dim": 8} | values)


@pytest.mark.parametrize("family", [*FREE, *HEADS_DIVIDE_HIDDEN])
def test_heads_are_as_wide_as_asked_for(family: str) -> None:
    model = build_model(sizes(family, hidden=24, heads=2, head_dim=8), n_items=9, max_length=4, seed=1)
    assert isinstance(model, LlmRecommender)
    attention = model.body.blocks[0].self_attn
    assert attention.head_dim == 8 and attention.o_proj.weight.shape == (24, 16)
    assert attention.scaling == 8**-0.5


@pytest.mark.parametrize("family", FREE)
def test_where_the_family_lets_them_they_need_not_divide_the_stream(family: str) -> None:
    model = build_model(sizes(family, hidden=20, heads=3, head_dim=8), n_items=9, max_length=4, seed=1)
    assert isinstance(model, LlmRecommender)
    assert model.body.blocks[0].self_attn.o_proj.weight.shape == (20, 24)


@pytest.mark.parametrize("family", HEADS_DIVIDE_HIDDEN)
def test_a_family_that_wants_a_multiple_says_so(family: str) -> None:
    with pytest.raises(ValidationError, match="3 does not divide 20"):
        sizes(family, hidden=20, heads=3, head_dim=8)


@pytest.mark.parametrize("family", HEADS_FILL_HIDDEN)
def test_heads_that_fill_the_stream_have_no_width_of_their_own(family: str) -> None:
    assert sizes(family, hidden=24, heads=3, head_dim=8).head_size == 8
    with pytest.raises(ValidationError, match="2 heads x 8 are not 24"):
        sizes(family, hidden=24, heads=2, head_dim=8)


def test_without_a_width_heads_share_the_stream() -> None:
    assert sizes("qwen3", hidden=24, heads=2).head_size == 12
    with pytest.raises(ValidationError, match="must divide one another"):
        sizes("qwen3", hidden=20, heads=3)
