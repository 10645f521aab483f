"""Statistics of real inputs: brute force agrees, padding and what others share a batch do not matter."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import calibration
from compress.calibration import Calibration, sample
from compress.quantization.inputs import hessians, largest_inputs, real_positions
from recommender.checkpoint import load_checkpoint
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.interface import History, SequentialRecommender
from recommender.models.linears import Linear, body_linears, quantizable, watched
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound
from tests.compress.conftest import ITEMS, MAX_LENGTH


@pytest.fixture(params=["teacher", "sasrec"])
def model(request: pytest.FixtureRequest) -> SequentialRecommender:
    trained: Bound = request.getfixturevalue(request.param)
    return load_checkpoint(trained.path)


@pytest.fixture
def drawn(prepared: Prepared) -> Calibration:
    split = prepared.split("leave-one-out")
    return sample(prepared, split, users=30, max_length=MAX_LENGTH, seed=0)


def one_by_one(model: SequentialRecommender, drawn: Calibration) -> Iterator[dict[str, Tensor]]:
    """Inputs [positions, in] of every matrix, user by user, without any padding."""
    linears = body_linears(model.bodies()["user"])
    for row in drawn.items:
        found: dict[str, Tensor] = {}

        def see(linear: Linear, given: Tensor, found: dict[str, Tensor] = found) -> None:
            found[linear.name] = given.reshape(-1, given.shape[-1])

        with torch.inference_mode(), watched(linears, see):
            model.hidden(History(torch.from_numpy(row[row != 0][None])))
        yield found


def test_hessians_are_those_of_all_real_positions(model: SequentialRecommender, drawn: Calibration) -> None:
    linears = body_linears(model.bodies()["user"])
    found = hessians(model, linears, drawn)
    alone = list(one_by_one(model, drawn))
    assert set(found) == set(linears)
    for name in linears:
        rows = torch.cat([each[name] for each in alone])
        assert torch.allclose(found[name], (2 / len(rows) * rows.T @ rows).double(), rtol=1e-3, atol=1e-4)


def test_the_largest_input_is_that_of_all_real_positions(
    model: SequentialRecommender, drawn: Calibration
) -> None:
    linears = body_linears(model.bodies()["user"])
    alone = list(one_by_one(model, drawn))
    for name, value in largest_inputs(model, linears, drawn).items():
        assert value == pytest.approx(max(float(each[name].abs().max()) for each in alone), rel=1e-4)


def test_a_percentile_is_that_of_all_numbers(model: SequentialRecommender, drawn: Calibration) -> None:
    linears = body_linears(model.bodies()["user"])
    alone = list(one_by_one(model, drawn))
    for name, value in largest_inputs(model, linears, drawn, percentile=99.0).items():
        numbers = torch.cat([each[name].reshape(-1) for each in alone]).abs().numpy()
        assert value == pytest.approx(np.percentile(numbers, 99), rel=0.02, abs=float(numbers.max()) / 2000)


def test_how_histories_are_put_together_does_not_matter(
    model: SequentialRecommender, drawn: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = body_linears(model.bodies()["user"])
    together = hessians(model, linears, drawn)
    monkeypatch.setattr(calibration, "TOKENS_PER_CALL", 1)
    apart = hessians(model, linears, drawn)
    for name in linears:
        assert torch.allclose(together[name], apart[name], rtol=1e-3, atol=1e-4)


def test_only_the_blocks_up_to_the_last_matrix_are_run(
    model: SequentialRecommender, drawn: Calibration
) -> None:
    linears = body_linears(model.bodies()["user"])
    first = {name: linear for name, linear in linears.items() if linear.block == 0}
    calls: list[str] = []
    with watched(linears, lambda linear, _: calls.append(linear.name)):
        assert set(hessians(model, first, drawn)) == set(first)
    assert set(calls) == set(first)


def test_prompts_count_and_padding_between_prompt_and_items_does_not() -> None:
    config = LlmConfig(layers=1, hidden=16, heads=2, item_dim=8)
    model = build_model(config, n_items=ITEMS, max_length=6, seed=0).eval()
    assert isinstance(model, LlmRecommender)
    model.prefix, model.suffix = torch.zeros(2, 16), torch.zeros(1, 16)
    history = History(torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]]))
    with torch.inference_mode():
        real = real_positions(history, model.hidden(history))
    assert real.int().tolist() == [[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("prompts", [0, 3])
def test_projections_see_items_and_the_states_where_these_are_read(prompts: int, drawn: Calibration) -> None:
    config = LlmConfig(layers=2, hidden=16, heads=2, item_dim=8)
    model = build_model(config, n_items=ITEMS, max_length=MAX_LENGTH, seed=0).eval()
    assert isinstance(model, LlmRecommender)
    model.prefix = torch.randn(prompts, 16)
    linears = {name: each for name, each in quantizable(model).items() if "projection" in name}
    found = hessians(model, linears, drawn)
    before, behind = [], []
    with torch.inference_mode():
        for row in drawn.items:
            items = torch.from_numpy(row[row != 0][None])
            before.append(model.items(items)[0])
            behind.append(model.hidden(History(items)).final[0, prompts:])
    for name, given in (("input_projection", before), ("output_projection", behind)):
        rows = torch.cat(given)
        wanted = (2 / len(rows) * rows.T @ rows).double()
        assert torch.allclose(found[name], wanted, rtol=1e-3, atol=1e-4)
    alone = hessians(model, {"input_projection": linears["input_projection"]}, drawn)
    assert torch.allclose(alone["input_projection"], found["input_projection"])
