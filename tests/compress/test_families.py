"""Every decoder family that can be built survives pruning, saving and plain loading without a change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from recommender.checkpoint import load_checkpoint, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import FAMILIES, LlmConfig
from recommender.models.hf_body import HuggingFaceBody, drop_word_embeddings
from recommender.models.interface import Hidden, History
from recommender.models.llm import LlmRecommender

KEPT = [0, 2, 5]  # neither contiguous nor periodic, so a per-layer list that is not cut must show
Build = Callable[[str], LlmRecommender]


def from_family(family: str) -> LlmRecommender:
    config = LlmConfig(family=family, layers=6, hidden=16, heads=2, item_dim=8)
    model = build_model(config, n_items=40, max_length=10, seed=1)
    assert isinstance(model, LlmRecommender)
    return loud(model)


def with_windows(family: str) -> LlmRecommender:
    """Blocks of two kinds, whole and sliding attention, with a window shorter than the history."""
    sizes = {
        "vocab_size": 1,
        "pad_token_id": 0,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 2,
        "use_cache": False,
    }
    more = {"use_sliding_window": True, "max_window_layers": 3} if family.startswith("qwen") else {}
    torch.manual_seed(1)
    backbone = AutoModel.from_config(AutoConfig.for_model(family, **sizes, **more))
    drop_word_embeddings(backbone)
    assert len(set(backbone.config.layer_types)) == 2
    vectors = torch.randn(41, 8)
    model = LlmRecommender(
        HuggingFaceBody(backbone), item_vectors=vectors, train_items=True, max_length=10, dropout=0.0
    )
    return loud(model)


def loud(model: LlmRecommender) -> LlmRecommender:
    """Weights so large that every block changes the stream visibly."""
    with torch.no_grad():
        for block in model.body.blocks:
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
    return model.eval()


CASES = [
    *((from_family, family) for family in FAMILIES),
    *((with_windows, f) for f in ("qwen2", "gemma2", "gemma3_text")),
]
cases = pytest.mark.parametrize(
    ("build", "family"), CASES, ids=lambda value: getattr(value, "__name__", value)
)


def histories() -> Tensor:
    items = torch.randint(1, 41, (5, 10), generator=torch.Generator().manual_seed(0))
    for user in range(5):
        items[user, : 2 * user] = 0
    return items


def states(hidden: Hidden, items: Tensor) -> Tensor:
    return torch.stack([state[items != 0] for state in (hidden.entry, *hidden.blocks, hidden.final)])


@cases
def test_skipping_blocks_equals_deleting_them(build: Build, family: str) -> None:
    model, items = build(family), histories()
    with torch.inference_mode():
        whole = states(model.hidden(History(items)), items)
        skipped = states(model.hidden(History(items), blocks=KEPT), items)
        again = states(model.hidden(History(items)), items)
        model.body.keep(KEPT)
        deleted = states(model.hidden(History(items)), items)
    assert torch.equal(skipped, deleted)
    assert torch.equal(whole, again)
    assert (whole[-1] - deleted[-1]).abs().max() > 0.01  # the test would see a block that was not removed


@cases
def test_pruned_checkpoint_comes_back_exactly(
    build: Build, family: str, tmp_path: Path, prepared: Prepared
) -> None:
    model, items = build(family), histories()
    model.body.keep(KEPT)
    config = LlmConfig(family=family, layers=3, hidden=16, heads=2, item_dim=8)
    save_checkpoint(model, tmp_path / "checkpoint", prepared=prepared, model_config=config)
    loaded = load_checkpoint(tmp_path / "checkpoint", prepared=prepared)
    with torch.inference_mode():
        expected = states(model.hidden(History(items)), items)
        assert torch.equal(states(loaded.hidden(History(items)), items), expected)
        assert torch.equal(loaded.user_vector(History(items)), model.user_vector(History(items)))


@cases
def test_plain_transformers_load_the_pruned_body_with_the_same_states(
    build: Build, family: str, tmp_path: Path, prepared: Prepared
) -> None:
    model, items = build(family), histories()
    model.body.keep(KEPT)
    config = LlmConfig(family=family, layers=3, hidden=16, heads=2, item_dim=8)
    save_checkpoint(model, tmp_path / "checkpoint", prepared=prepared, model_config=config)
    plain, report = AutoModel.from_pretrained(tmp_path / "checkpoint" / "backbone", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert plain.config.num_hidden_layers == len(KEPT)
    mask = (items != 0).long()
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if model.body.counts_positions else {}
    with torch.inference_mode():
        embeds = model.input_projection(model.items(items))
        out = plain.eval()(inputs_embeds=embeds, attention_mask=mask, **positions).last_hidden_state
        final = model.hidden(History(items)).final
    assert (out - final)[items != 0].abs().max() == 0.0


@cases
def test_pruned_blocks_are_numbered_anew(build: Build, family: str) -> None:
    model = build(family)
    model.body.keep(KEPT)
    numbers = [
        {m.layer_idx for m in block.modules() if isinstance(getattr(m, "layer_idx", None), int)}
        for block in model.body.blocks
    ]
    assert all(found <= {place} for place, found in enumerate(numbers))
    kinds = getattr(model.body.config, "layer_types", None)
    assert kinds is None or len(kinds) == len(KEPT)


@cases
def test_all_that_is_trainable_after_loading_gets_a_gradient(
    build: Build, family: str, tmp_path: Path, prepared: Prepared
) -> None:
    """Several processes wait for every gradient, so one that never comes ends a distributed training."""
    model, items = build(family), histories()
    model.body.keep(KEPT)
    config = LlmConfig(family=family, layers=3, hidden=16, heads=2, item_dim=8)
    save_checkpoint(model, tmp_path / "checkpoint", prepared=prepared, model_config=config)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    loaded.project(loaded.hidden(History(items)).final).sum().backward()
    assert [name for name, p in loaded.named_parameters() if p.requires_grad and p.grad is None] == []
