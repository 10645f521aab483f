"""Training through the rounding: starts where the checkpoint is, learns, ends on the grid."""

import pytest
import torch
from torch import Tensor, nn

from compress.quantization.apply import round_table
from compress.quantization.grid import on_grid, scales_of, to_numbers
from compress.quantization.rounding import rounded
from compress.quantization.training import OnGrid, trained_on_grid
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.interface import History, SequentialRecommender
from recommender.models.linears import body_linears
from recommender.quantization_scheme import (
    INT4,
    INT8,
    ITEM_TABLE,
    TABLE_LEVELS,
    MatrixScheme,
    Quantization,
    QuantizationScheme,
    whole_numbers,
)

HISTORY = History(torch.tensor([[0, 3, 4, 5], [1, 2, 3, 4]]))
INT4_GROUPED = MatrixScheme(weights="int4", group=16)


def grid_of(matrix: Tensor, *, transposed: bool = False) -> OnGrid:
    return OnGrid(scales_of(matrix, INT4, 16), INT4, 16, transposed=transposed)


def random(rows: int = 4, width: int = 24) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def test_it_starts_as_plain_rounding_however_the_weight_lies() -> None:
    wanted = on_grid(random(), scales_of(random(), INT4, 16), INT4, 16)
    assert torch.equal(grid_of(random())(random()), wanted)
    assert torch.equal(grid_of(random(), transposed=True)(random().T), wanted.T)


def test_gradients_pass_where_nothing_is_clipped_and_nowhere_else() -> None:
    weight = torch.tensor([[0.3, -1.0, 9.0, -9.0]], requires_grad=True)
    OnGrid(torch.ones(1, 1), INT4, None)(weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_steps_get_the_gradient_of_lsq() -> None:
    weight = torch.tensor([[0.3, -1.2, 9.0, -9.0]])
    grid = OnGrid(torch.ones(1, 1), INT4, None)
    grid(weight).sum().backward()
    inside = (0.0 - 0.3) + (-1.0 + 1.2)
    assert grid.shift.grad is not None
    assert grid.shift.grad.item() == pytest.approx(inside + 7 - 8, abs=1e-6)


def test_a_step_that_is_too_wide_is_learnt_to_be_narrower() -> None:
    target = random(2, 64)
    grid = OnGrid(3 * scales_of(target, INT8), INT8, None)
    optimizer = torch.optim.AdamW(grid.parameters(), lr=0.02)

    def loss() -> Tensor:
        return (grid(target) - target).square().mean()

    before = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before / 2
    assert (grid.steps() < 3 * scales_of(target, INT8)).all() and grid.steps().min() > 0


def quantized(family: str = "llama", table: str = "int8") -> tuple[SequentialRecommender, Quantization]:
    config = LlmConfig(family=family, layers=2, hidden=16, heads=2, item_dim=8, dropout=0.0)  # type: ignore[arg-type]
    model = build_model(config, n_items=20, max_length=6, seed=0).eval()
    scales = {}
    linears = body_linears(model.bodies()["user"])
    for name, linear in linears.items():
        found = rounded(linear.matrix(), INT4_GROUPED)
        assert found.scales is not None
        linear.matrix().copy_(found.values)
        scales[name] = found.scales.numpy()
    if table != "fp32":
        scales[ITEM_TABLE] = round_table(model, table).numpy()  # type: ignore[arg-type]
    scheme = QuantizationScheme(matrices=dict.fromkeys(linears, INT4_GROUPED), item_table=table)  # type: ignore[arg-type]
    return model, Quantization(scheme, scales)


def vectors(model: SequentialRecommender) -> Tensor:
    return model.user_vector(HISTORY)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_answers_as_its_checkpoint_until_it_is_trained_and_ends_on_its_grid(family: str) -> None:
    model, quantization = quantized(family)
    before, names = vectors(model), {name for name, _ in model.named_parameters()}
    with trained_on_grid(model, quantization) as learnt:
        assert torch.equal(vectors(model), before)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            scores = vectors(model) @ model.item_table().T
            nn.functional.cross_entropy(scores, torch.tensor([6, 5])).backward()
            optimizer.step()
        trained, table = vectors(model), model.item_table()
    assert not torch.equal(trained, before)
    assert torch.equal(vectors(model), trained) and torch.equal(model.item_table(), table)
    assert {name for name, _ in model.named_parameters()} == names
    for name, linear in body_linears(model.bodies()["user"]).items():
        assert not torch.equal(learnt[name], torch.from_numpy(quantization.scales[name]))
        whole_numbers(linear.matrix().numpy(), learnt[name].numpy(), INT4, 16, name)
    table = model.item_table().detach()
    whole_numbers(table.numpy(), learnt[ITEM_TABLE].numpy(), TABLE_LEVELS["int8"], None, ITEM_TABLE)


def test_a_frozen_item_table_stays_where_it_is() -> None:
    model, quantization = quantized()
    model.items.weight.requires_grad_(False)  # type: ignore[union-attr]
    table = model.item_table().clone()
    with trained_on_grid(model, quantization) as learnt:
        assert model.item_table().data_ptr() == model.items.weight.data_ptr()  # type: ignore[union-attr]
    assert torch.equal(model.item_table(), table)
    assert torch.equal(learnt[ITEM_TABLE], torch.from_numpy(quantization.scales[ITEM_TABLE]))


def test_an_error_while_training_leaves_a_plain_model_behind() -> None:
    model, quantization = quantized(table="fp32")
    before = vectors(model)
    with pytest.raises(RuntimeError, match="stop"), trained_on_grid(model, quantization):
        raise RuntimeError("stop")
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    assert torch.equal(vectors(model), before)


def test_levels_count_the_numbers_of_a_trained_grid() -> None:
    model, quantization = quantized(table="fp32")
    with trained_on_grid(model, quantization) as learnt:
        pass
    for name, linear in body_linears(model.bodies()["user"]).items():
        numbers = to_numbers(linear.matrix(), learnt[name], INT4, 16)
        assert numbers.unique().numel() <= 16
