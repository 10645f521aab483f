"""What is measured on a model before it is narrowed, against the formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress.calibration import Calibration
from compress.narrowing.activation import Importance, activation_importance, item_positions
from compress.narrowing.cut import layout_of, widths_in
from compress.narrowing.taylor import next_item_loss, taylor_importance
from recommender.errors import InputError
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.interface import History
from recommender.models.llm import LlmRecommender


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tiny(family: str = "llama", **values: object) -> LlmRecommender:
    sizes = {"layers": 2, "hidden": 16, "heads": 4, "ffn": 12, "item_dim": 8, "dropout": 0.0} | values
    config = LlmConfig.model_validate({"family": family, **sizes})
    model = build_model(config, n_items=30, max_length=8, seed=3).eval()
    assert isinstance(model, LlmRecommender)
    return model


def rows(users: int = 6, length: int = 8, shortest: int = 2) -> Tensor:
    items = torch.randint(1, 31, (users, length), generator=generator())
    for user in range(users):
        items[user, : max(0, min(user, length - shortest))] = 0
    return items.flip(0)


def calibration(items: Tensor) -> Calibration:
    return Calibration(items.numpy(), items[:, -1].numpy(), np.arange(len(items)))


def activation(model: LlmRecommender, items: Tensor) -> Importance:
    layout, widths = layout_of(model.body.config), widths_in(model.body.config)
    return activation_importance(model, layout, widths, calibration(items))


def taylor(model: LlmRecommender, items: Tensor, order: int) -> Importance:
    layout, widths = layout_of(model.body.config), widths_in(model.body.config)
    return taylor_importance(model, layout, widths, calibration(items), order=order)


def flat(importance: Importance) -> Tensor:
    blocks = [block[name] for block in importance.blocks for name in ("ffn", "heads", "kv")]
    return torch.cat((importance.hidden, *blocks))


def prompted() -> LlmRecommender:
    model = tiny()
    model.prefix = torch.randn(3, 16, generator=generator())
    model.suffix = torch.randn(2, 16, generator=generator())
    return model


METHODS = {
    "activation": activation,
    "taylor": lambda model, items: taylor(model, items, 1),
    "taylor-second": lambda model, items: taylor(model, items, 2),
}
methods = pytest.mark.parametrize("method", METHODS)


@methods
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "prompted"])
def test_scores_do_not_depend_on_padding_or_batches(
    method: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, items = prompted() if family == "prompted" else tiny(family), rows()
    expected = flat(METHODS[method](model, items))
    assert torch.isfinite(expected).all() and (expected > 0).any()
    wider = functional.pad(items, (3, 0))
    assert torch.allclose(flat(METHODS[method](model, wider)), expected, rtol=1e-3)
    monkeypatch.setattr("compress.calibration.TOKENS_PER_CALL", 8)
    assert torch.allclose(flat(METHODS[method](model, items)), expected, rtol=1e-3)


@methods
def test_scores_are_the_same_every_time(method: str) -> None:
    assert torch.equal(flat(METHODS[method](tiny(), rows())), flat(METHODS[method](tiny(), rows())))


def test_activation_scores_are_those_of_the_definition() -> None:
    model, items = tiny(), rows(users=3, shortest=8)  # nobody has padding, so the plain formulas hold
    seen: dict[str, Tensor] = {}
    block = model.body.blocks[1]
    watched = {"down": block.mlp.down_proj, "out": block.self_attn.o_proj}
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    norms = [
        norm for each in model.body.blocks for norm in (each.input_layernorm, each.post_attention_layernorm)
    ]
    for number, norm in enumerate([*norms, model.body.backbone.norm]):
        norm.register_forward_hook(lambda _, a, out, name=f"norm{number}": seen.__setitem__(name, out))
    with torch.inference_mode():
        model.hidden(History(items))
    found = activation(model, items)

    def agg(values: Tensor) -> Tensor:
        return values.abs().mean(dim=1).square().sum(dim=0).sqrt().double()

    assert torch.allclose(found.blocks[1]["ffn"], agg(seen["down"]), rtol=1e-5)
    assert torch.allclose(found.blocks[1]["heads"], agg(seen["out"]).view(4, 4).norm(dim=1), rtol=1e-5)
    assert torch.allclose(found.hidden, sum(agg(seen[f"norm{n}"]) for n in range(5)), rtol=1e-5)


def test_prompts_are_left_out_and_a_suffix_is_read_at_its_end() -> None:
    real = item_positions(prompted(), torch.tensor([[0, 5, 7]]))
    assert real.int().tolist() == [[0, 0, 0, 0, 1, 0, 0, 1]]
    assert item_positions(tiny(), torch.tensor([[0, 5, 7]])).int().tolist() == [[0, 1, 1]]


def test_the_loss_is_that_of_the_next_item() -> None:
    model, items = tiny(), torch.tensor([[0, 4, 9, 2], [0, 0, 0, 3]])
    loss, count = next_item_loss(model, items)
    states = model.project(model.hidden(History(items[:1, 1:])).final[0])
    logits = states @ model.item_table()[1:].T
    expected = functional.cross_entropy(logits[:2], torch.tensor([8, 1]), reduction="sum")
    assert count == 2 and torch.allclose(loss, expected, rtol=1e-5)


def test_with_a_suffix_only_the_last_item_is_asked_for() -> None:
    assert next_item_loss(prompted(), torch.tensor([[4, 9, 2], [0, 6, 2]]))[1] == 2


def test_taylor_scores_are_those_of_the_definition() -> None:
    model, items = tiny("gpt_neox"), rows()
    found = taylor(model, items, 1)
    loss, count = next_item_loss(model, items)
    (loss / count).backward()
    block = model.body.blocks[0]

    def product(parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        return (parameter.double() * parameter.grad.double()).abs()

    up, down = block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h
    ffn = product(up.weight).sum(1) + product(up.bias) + product(down.weight).sum(0)
    assert torch.allclose(found.blocks[0]["ffn"], ffn.detach(), rtol=1e-3)
    fused, out = block.attention.query_key_value, block.attention.dense
    heads = product(fused.weight).view(4, -1).sum(1) + product(fused.bias).view(4, -1).sum(1)
    heads = heads + product(out.weight).sum(0).view(4, -1).sum(1)
    assert torch.allclose(found.blocks[0]["heads"], heads.detach(), rtol=1e-3)
    around = product(model.input_projection.weight).sum(1) + product(model.output_projection.weight).sum(0)
    for each in model.body.blocks:
        for inward in (each.attention.query_key_value, each.mlp.dense_h_to_4h):
            around = around + product(inward.weight).sum(0)
        for outward in (each.attention.dense, each.mlp.dense_4h_to_h):
            around = around + product(outward.weight).sum(1) + product(outward.bias)
    around = around + product(model.input_projection.bias)
    assert torch.allclose(found.hidden, around.detach(), rtol=1e-3)


def test_taylor_scores_of_shared_keys_and_values_are_those_of_the_definition() -> None:
    model, items = tiny(kv_heads=2), rows()
    found = taylor(model, items, 1).blocks[0]
    attention = model.body.blocks[0].self_attn
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    weights = {name: getattr(attention, name).weight for name in names}
    loss, count = next_item_loss(model, items)
    gradients = torch.autograd.grad(loss / count, list(weights.values()))
    q, k, v, o = (
        (weight.detach().double() * gradient.double()).abs()
        for weight, gradient in zip(weights.values(), gradients, strict=True)
    )
    heads = q.view(4, -1).sum(1) + o.sum(0).view(4, -1).sum(1)
    shared = k.view(2, -1).sum(1) + v.view(2, -1).sum(1)
    assert torch.allclose(found["heads"], heads, rtol=1e-3) and torch.allclose(found["kv"], shared, rtol=1e-3)
    assert len(found["kv"]) == 2 and float(shared.min()) > 0


def test_second_order_scores_are_those_of_the_definition() -> None:
    model, items = tiny(), rows(users=4, shortest=3)
    found = taylor(model, items, 2).blocks[1]["ffn"]
    mlp = model.body.blocks[1].mlp
    parts = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    squares = [torch.zeros_like(part) for part in parts]
    for row in items:
        loss, count = next_item_loss(model, row[row != 0][None])
        for total, gradient in zip(squares, torch.autograd.grad(loss / count, parts), strict=True):
            total += gradient.square() / len(items)
    gate, up, down = (part.double() ** 2 * total for part, total in zip(parts, squares, strict=True))
    assert torch.allclose(found, (gate.sum(1) + up.sum(1) + down.sum(0)).detach(), rtol=1e-3)


def test_histories_of_one_item_give_no_gradient() -> None:
    for order in (1, 2):
        with pytest.raises(InputError, match="no training history has a second item"):
            taylor(tiny(), torch.tensor([[0, 3], [0, 4]]), order)
