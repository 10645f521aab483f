"""Calibration reads training histories only, and its scores do not depend on how they are batched."""

import numpy as np
import pytest
import torch

from compress import calibration
from compress.depth import angular_distances, block_influence
from recommender.checkpoint import load_checkpoint
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.interface import History, SequentialRecommender
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound


@pytest.fixture
def model(teacher: Bound) -> SequentialRecommender:
    return load_checkpoint(teacher.path)


def test_histories_end_before_the_validation_item(prepared: Prepared) -> None:
    split = prepared.split("leave-one-out")
    drawn = calibration.sample(prepared, split, users=10_000, max_length=10, seed=0)
    assert len(drawn.targets) == prepared.n_users
    seen = sorted(
        (list(items[items != 0]), target) for items, target in zip(drawn.items, drawn.targets, strict=True)
    )
    expected = sorted(
        (list(prepared.history(user, end)[-10:]), prepared.history(user)[end])
        for user, end in enumerate(split.train_end)
    )
    assert seen == expected


def test_sample_is_seeded_and_without_repetition(prepared: Prepared) -> None:
    split = prepared.split("leave-one-out")
    one, same, other = (
        calibration.sample(prepared, split, users=20, max_length=10, seed=seed).items for seed in (0, 0, 1)
    )
    assert len(one) == 20 and np.array_equal(one, same) and not np.array_equal(one, other)


def test_scores_do_not_depend_on_the_batch_size(
    model: SequentialRecommender, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = calibration.sample(prepared, prepared.split("leave-one-out"), users=50, max_length=10, seed=0)
    results = []
    for tokens in (4096, 40, 1):
        monkeypatch.setattr(calibration, "TOKENS_PER_CALL", tokens)
        streams = calibration.streams
        results.append(
            [
                *block_influence(streams(model, drawn)),
                *angular_distances(streams(model, drawn), 2),
                calibration.validation_loss(model, drawn)([0, 2]),
            ]
        )
    assert results[1] == pytest.approx(results[0], abs=1e-5)
    assert results[2] == pytest.approx(results[0], abs=1e-5)


def test_validation_loss_is_the_cross_entropy_of_the_next_item(
    model: SequentialRecommender, prepared: Prepared
) -> None:
    drawn = calibration.sample(prepared, prepared.split("leave-one-out"), users=30, max_length=10, seed=0)
    loss = calibration.validation_loss(model, drawn)([0, 1, 3])
    model.bodies()["user"].keep([0, 1, 3])
    with torch.inference_mode():
        scores = model.user_vector(History(torch.from_numpy(drawn.items))) @ model.item_table()[1:].T
    expected = torch.nn.functional.cross_entropy(scores, torch.from_numpy(drawn.targets) - 1)
    assert loss == pytest.approx(float(expected), abs=1e-5)


def test_streams_leave_prompts_out_and_read_the_last_item_behind_a_suffix(prepared: Prepared) -> None:
    config = LlmConfig(layers=2, hidden=16, item_dim=8, dropout=0.0)
    plain = build_model(config, n_items=prepared.n_items, max_length=10, seed=0)
    assert isinstance(plain, LlmRecommender)
    prompted = LlmRecommender(
        plain.body,
        item_vectors=plain.items.weight.detach(),
        train_items=True,
        max_length=10,
        dropout=0.0,
        prefix=torch.randn(3, 16),
        suffix=torch.randn(2, 16),
    ).eval()
    drawn = calibration.sample(prepared, prepared.split("leave-one-out"), users=8, max_length=10, seed=0)
    (streams,) = calibration.streams(prompted, drawn)
    hidden = prompted.hidden(History(torch.from_numpy(drawn.items)))
    assert streams.states[-1].shape[1] == streams.real.shape[1] == drawn.items.shape[1]
    assert torch.equal(streams.states[-1][:, -1], hidden.blocks[-1][:, -1])
    assert torch.equal(streams.states[1][:, :-1], hidden.blocks[0][:, 3:-3])
