"""The matrices of a body: all of them, in one orientation, as views."""

import pytest
import torch

from recommender.models.build import build_model
from recommender.models.config import LlmConfig, SasrecConfig
from recommender.models.interface import History, SequentialRecommender
from recommender.models.linears import body_linears, quantizable, watched


def model_of(family: str) -> SequentialRecommender:
    config = (
        SasrecConfig(layers=2, hidden=8)
        if family == "sasrec"
        else LlmConfig(family=family, layers=2, hidden=8, heads=2, ffn=24, item_dim=8)
    )
    return build_model(config, n_items=9, max_length=5, seed=0).eval()


@pytest.mark.parametrize(
    ("family", "per_block"),
    [("llama", 7), ("qwen3", 7), ("gpt2", 4), ("gpt_neox", 4), ("opt", 6), ("sasrec", 5)],
)
def test_every_matrix_of_every_block_is_listed_and_no_norm_or_bias(family: str, per_block: int) -> None:
    model = model_of(family)
    linears = body_linears(model.bodies()["user"])
    assert [each.block for each in linears.values()] == [0] * per_block + [1] * per_block
    in_blocks = sum(p.numel() for p in model.bodies()["user"].blocks.parameters() if p.dim() == 2)
    assert sum(each.matrix().numel() for each in linears.values()) == in_blocks


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_matrix_is_a_view_of_shape_out_in_whatever_the_family_stores(family: str) -> None:
    model = model_of(family)
    name = "1.mlp.down_proj" if family == "llama" else "1.mlp.c_proj"
    linear = body_linears(model.bodies()["user"])[name]
    assert linear.matrix().shape == (8, 24)
    linear.matrix()[3, 5] = 42.0
    assert float(linear.matrix().max()) == 42.0


@pytest.mark.parametrize("family", ["llama", "gpt2", "sasrec"])
def test_inputs_are_seen_while_it_is_watched_and_not_after(family: str) -> None:
    model = model_of(family)
    linears = body_linears(model.bodies()["user"])
    seen: dict[str, int] = {}
    history = History(torch.tensor([[0, 1, 2], [3, 4, 5]]))
    with watched(linears, lambda linear, x: seen.__setitem__(linear.name, x.shape[-1])), torch.no_grad():
        model.hidden(history)
    assert seen == {name: each.matrix().shape[1] for name, each in linears.items()}
    seen.clear()
    with torch.no_grad():
        model.hidden(history)
    assert not seen


def test_projections_stand_around_the_body_where_a_model_has_them() -> None:
    model = model_of("llama")
    every = list(quantizable(model).values())
    assert [every[0].name, every[-1].name] == ["input_projection", "output_projection"]
    assert {each.name for each in every[1:-1]} == set(body_linears(model.bodies()["user"]))
    assert [each.block for each in every[1:-1]] == [0] * 7 + [1] * 7
    assert every[0].block < 0 and every[-1].block > 1
    assert list(quantizable(model_of("sasrec"))) == list(body_linears(model_of("sasrec").bodies()["user"]))
