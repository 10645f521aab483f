"""Zeros of a body: noted, renamed with their blocks, measured, and kept through masks and merges."""

from typing import Any

import pytest
import torch

from recommender.errors import InputError
from recommender.models.adapters import add_adapters, merge_adapters
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, LoraSettings, SasrecConfig
from recommender.models.interface import History, SequentialRecommender
from recommender.models.linears import body_linears
from recommender.models.llm import LlmRecommender
from recommender.models.zeros import HeldZeros, held_zeros, measure
from recommender.sparsity import Sparsity, Zeros, cut, noted

LLAMA = LlmConfig(layers=3, hidden=16, heads=2, item_dim=8)
CONFIGS = {
    "llama": LLAMA,
    "gpt2": LlmConfig(family="gpt2", layers=3, hidden=16, heads=2, item_dim=8),
    "sasrec": SasrecConfig(hidden=16, layers=3),
}
HISTORY = History(torch.tensor([[0, 0, 3, 9], [1, 2, 3, 4]]))


def model_of(name: str = "llama") -> SequentialRecommender:
    return build_model(CONFIGS[name], n_items=20, max_length=6, seed=1).eval()


def sparse(name: str = "llama") -> tuple[SequentialRecommender, Sparsity]:
    """A model in which every other input of all matrices but those of block 0 is off."""
    model = model_of(name)
    linears = body_linears(model.bodies()["user"])
    for each in linears.values():
        if each.block > 0:
            each.matrix()[:, ::2] = 0
    matrices = {each.name: 0.5 for each in linears.values() if each.block > 0}
    note = Sparsity(
        method="magnitude", pattern="unstructured", sparsity=0.5, matrices=matrices, zeros=0, weights=1
    )
    return model, measure(model.bodies()["user"], note)


def user_vector(model: SequentialRecommender) -> torch.Tensor:
    with torch.no_grad():
        return model.user_vector(HISTORY)


@pytest.mark.parametrize("name", CONFIGS)
def test_zeros_are_counted_exactly_over_all_matrices(name: str) -> None:
    _, note = sparse(name)
    assert set(note.matrices.values()) == {0.5}
    assert note.share == pytest.approx(1 / 3)
    assert note.planned == Zeros("2:4", 0.5, everywhere=False)  # as it lies; block 0 has none


def test_one_matrix_that_is_not_2_to_4_makes_the_note_unstructured() -> None:
    model, note = sparse()
    linear = body_linears(model.bodies()["user"])["1.mlp.up_proj"]
    linear.matrix()[0] = 1.0
    assert note.pattern == "2:4" and measure(model.bodies()["user"], note).pattern == "unstructured"


def test_the_note_follows_its_blocks() -> None:
    model, note = sparse()
    left = cut(note, [0, 2])
    assert left is not None
    assert set(left.matrices) == {f"1.{n[2:]}" for n in note.matrices if n.startswith("2.")}
    model.bodies()["user"].keep([0, 2])
    assert measure(model.bodies()["user"], left).share == pytest.approx(1 / 4)
    assert cut(note, [0]) is None and cut(None, [0]) is None


def test_a_note_is_read_as_it_was_written_and_a_broken_one_refused() -> None:
    _, note = sparse()
    assert noted({"sparsity": note.model_dump(mode="json")}, "here") == note
    assert noted({"seed": 1}, "here") is None
    broken = note.model_dump(mode="json") | {"zeros": "many"}
    with pytest.raises(InputError, match=r"here: broken note of zeros \(sparsity\.zeros"):
        noted({"sparsity": broken}, "here")


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_and_weights_are_masked_where_it_was_zero_and_nowhere_else(name: str) -> None:
    model, note = sparse(name)
    held = held_zeros(model, note, "here")
    assert held is not None
    linears = body_linears(model.bodies()["user"])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        with torch.no_grad():
            parameter.add_(1.0)
    held.mask_gradients()
    held.mask_weights()
    for matrix in linears.values():
        weight = matrix.module.weight
        assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None
        gradient = weight.grad.T if matrix.transposed else weight.grad
        off = matrix.block > 0
        for tensor in (gradient, matrix.matrix()):
            assert bool(tensor[:, ::2].any()) is not off and bool(tensor[:, 1::2].any())
    others = [p for n, p in model.named_parameters() if p.dim() == 1]
    assert others and all(bool((p.grad == 1).all()) for p in others)


def test_a_model_whose_zeros_are_filled_or_not_there_is_refused() -> None:
    model, note = sparse()
    assert held_zeros(model, None, "here") is None
    body_linears(model.bodies()["user"])["2.mlp.up_proj"].matrix()[0, 0] = 1.0
    with pytest.raises(
        InputError, match=r"2\.mlp\.up_proj has 4\d\.\d% zeros, but the checkpoint notes 50\.0%"
    ):
        held_zeros(model, note, "here")
    model.bodies()["user"].keep([0])
    with pytest.raises(
        InputError, match=r"notes zeros of 1\.self_attn\.q_proj, which its body does not have"
    ):
        held_zeros(model, note, "here")


def with_adapters(held: bool) -> tuple[LlmRecommender, HeldZeros | None, dict[str, Any]]:
    model, note = sparse()
    assert isinstance(model, LlmRecommender)
    zeros = held_zeros(model, note, "here") if held else None
    zero = {name: each.matrix() == 0 for name, each in body_linears(model.body).items()}
    add_adapters(model.body, LoraSettings(r=2, dropout=0.0), seed=0, held=zeros)
    for name, parameter in model.body.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model, zeros, zero


def filled(model: LlmRecommender, zero: dict[str, Any]) -> bool:
    return any(bool(each.matrix()[zero[name]].any()) for name, each in body_linears(model.body).items())


def test_merging_adapters_keeps_zeros_that_it_would_fill_otherwise() -> None:
    model, zeros, zero = with_adapters(held=True)
    before = user_vector(model)
    assert not torch.allclose(before, user_vector(sparse()[0]), atol=1e-2)  # the adapters do something
    assert merge_adapters(model.body, held=zeros) == 9
    assert not filled(model, zero)
    torch.testing.assert_close(user_vector(model), before, atol=1e-5, rtol=1e-4)  # it was trained like this
    other, _, zero = with_adapters(held=False)
    merge_adapters(other.body)
    assert filled(other, zero)


def test_adapters_learn_only_what_the_merge_will_keep() -> None:
    model, _, zero = with_adapters(held=True)
    module: Any = model.body.blocks[1].mlp.up_proj  # type: ignore[union-attr]
    x = torch.randn(5, 16)
    update = module.get_delta_weight("default").masked_fill(zero["1.mlp.up_proj"], 0)
    expected = x @ (module.get_base_layer().weight + update).T
    torch.testing.assert_close(module(x), expected)
    module(x).square().sum().backward()
    gradient = module.lora_A["default"].weight.grad.abs()
    assert float(gradient[:, ::2].max()) < 1e-4 * float(gradient[:, 1::2].max())  # every other input is off
