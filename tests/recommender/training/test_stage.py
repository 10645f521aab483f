"""The stage `train`: what it writes, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recommender.checkpoint import load_checkpoint
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, LoraSettings, PopularityConfig, SasrecConfig
from recommender.stage import Context, Shape
from recommender.training.stage import TrainConfig, run
from recommender.training.validation import validation_quality

from .conftest import N_ITEMS


class TestStage:
    def config(self, **model: Any) -> TrainConfig:
        return TrainConfig.model_validate(
            {"stage": "train", "as": "m", "model": model, "epochs": 2, "batch_size": 16}
        )

    @pytest.mark.parametrize(
        "model",
        [
            PopularityConfig(),
            SasrecConfig(hidden=8, layers=1),
            LlmConfig(layers=1, hidden=16, item_dim=8),
            LlmConfig(layers=1, hidden=16, item_dim=8, lora=LoraSettings(r=2)),
        ],
    )
    def test_writes_a_checkpoint_with_the_quality_it_saw(self, context: Context, model: Any) -> None:
        outputs = run(self.config(**model.model_dump()), {}, context)
        loaded = load_checkpoint(context.folder / "checkpoint", prepared=context.prepared)
        assert validation_quality(loaded, context)["ndcg@10"] == pytest.approx(
            outputs.metrics["best_ndcg"], abs=1e-9
        )

    def test_lora_leaves_the_body_as_it_was_but_for_its_targets(self, context: Context) -> None:
        config = self.config(
            **LlmConfig(layers=1, hidden=16, item_dim=8, lora=LoraSettings(r=2)).model_dump()
        )
        start = build_model(config.model, n_items=N_ITEMS, max_length=10, seed=context.seed).state_dict()
        run(config, {}, context)
        end = load_checkpoint(context.folder / "checkpoint").state_dict()
        changed = {
            name.split(".")[-2] for name in start if name in end and not torch.equal(start[name], end[name])
        }
        assert {"gate_proj", "down_proj", "items"} <= changed
        assert not changed & {"q_proj", "k_proj", "input_layernorm"}

    def test_adapters_are_drawn_from_the_seed(self, context: Context, tmp_path: Path) -> None:
        config = self.config(
            **LlmConfig(layers=1, hidden=16, item_dim=8, lora=LoraSettings(r=2)).model_dump()
        )
        ends = []
        for noise, seed in ((1, 1), (2, 1), (1, 2)):
            torch.manual_seed(noise)
            (scratch := tmp_path / f"scratch-{noise}-{seed}").mkdir()
            run(config, {}, replace(context, seed=seed, scratch=scratch))
            ends.append(load_checkpoint(context.folder / "checkpoint").state_dict())
        one, again, other = ends
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)

    def test_suffix_with_all_positions_is_refused(self) -> None:
        (problem,) = self.config(kind="llm", backbone="some-name", suffix="x").problems({})
        assert problem[0] == "positions" and "suffix" in problem[1]

    def test_item_vectors_of_popularity_are_refused(self) -> None:
        known = {"pop": Shape("checkpoint", model=PopularityConfig())}
        (problem,) = self.config(kind="llm", layers=1, items_from="pop").problems(known)
        assert problem[0] == "model.items_from" and "no item vectors" in problem[1]
