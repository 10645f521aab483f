"""The stage prune-width: the right members go, and the checkpoint tells the truth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from compress.narrowing.layout import Widths
from recommender.checkpoint import read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.evaluate import histories
from recommender.files import digest_of
from recommender.models.config import LlmConfig
from recommender.models.cost import cost_card
from recommender.models.interface import History
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound

from .conftest import MakeContext, saved, train_tiny
from .narrowed import changed, config_for, importances, kept_in, model_of, prune, shape_of


def user_vectors(checkpoint: Bound, prepared: Prepared) -> Tensor:
    users = np.arange(20)
    arrays = histories(prepared, users, prepared.lengths()[users], 10)
    with torch.inference_mode():
        return model_of(checkpoint).user_vector(History(torch.from_numpy(arrays.items)))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest_of(list(path.read_bytes())) for path in folder.rglob("*") if path.is_file()}


USELESS = {0: [3, 11, 40], 1: [0, 1, 2], 2: [45, 46, 47], 3: [7, 20, 33]}


def without_neurons(model: LlmRecommender) -> None:
    """Some neurons of each block are never active."""
    for number, block in enumerate(model.body.blocks):
        block.mlp.up_proj.weight[USELESS[number]] = 0


@importances
def test_neurons_that_do_nothing_are_the_ones_that_go(
    importance: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    planted = changed(teacher, prepared, f"planted-{importance}", without_neurons)
    narrow, metrics = prune(planted, make_context, ffn=45, importance=importance)
    for number, block in enumerate(kept_in(narrow)["blocks"]):
        assert sorted(set(range(48)) - set(block["ffn"])) == USELESS[number]
    assert metrics["importance_kept"]["ffn"] == pytest.approx([1.0] * 4)
    assert torch.allclose(user_vectors(narrow, prepared), user_vectors(planted, prepared), atol=1e-5)


def without_a_head(model: LlmRecommender) -> None:
    """Head 0 of even blocks and head 1 of odd ones say nothing."""
    for number, block in enumerate(model.body.blocks):
        head = slice(0, 8) if number % 2 == 0 else slice(8, 16)
        block.self_attn.v_proj.weight[head] = 0
        block.self_attn.o_proj.weight[:, head] = 0


@importances
def test_heads_that_say_nothing_are_the_ones_that_go(
    importance: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    planted = changed(teacher, prepared, f"mute-{importance}", without_a_head)
    narrow, _ = prune(planted, make_context, heads=1, importance=importance)
    assert [block["heads"] for block in kept_in(narrow)["blocks"]] == [[1], [0], [1], [0]]
    assert torch.allclose(user_vectors(narrow, prepared), user_vectors(planted, prepared), atol=1e-5)
    model = model_of(narrow)
    assert (model.body.config.head_dim, model.body.config.num_attention_heads) == (8, 1)


def without_channels(model: LlmRecommender) -> None:
    """Channels 2 and 9 of the stream are always zero."""
    gone = [2, 9]
    model.input_projection.weight[gone] = 0
    model.input_projection.bias[gone] = 0
    model.output_projection.weight[:, gone] = 0
    for block in model.body.blocks:
        block.self_attn.o_proj.weight[gone] = 0
        block.mlp.down_proj.weight[gone] = 0
        for inward in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            inward.weight[:, gone] = 0
        for inward in (block.mlp.gate_proj, block.mlp.up_proj):
            inward.weight[:, gone] = 0


@importances
def test_channels_that_are_always_zero_are_the_ones_that_go(
    importance: str, teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    planted = changed(teacher, prepared, f"flat-{importance}", without_channels)
    narrow, _ = prune(planted, make_context, hidden=14, importance=importance)
    assert kept_in(narrow)["hidden"] == [channel for channel in range(16) if channel not in (2, 9)]


def test_the_checkpoint_tells_the_truth_and_the_accounts_are_right(
    teacher: Bound, make_context: MakeContext
) -> None:
    narrow, metrics = prune(teacher, make_context, ffn=0.5, heads=1, hidden=12)
    info, model = read_info(narrow.path), model_of(narrow)
    expected = Widths(hidden=12, heads=1, kv_heads=1, head_dim=8, ffn=24)
    assert isinstance(info.model_config, LlmConfig)
    stated = (info.model_config.hidden, info.model_config.heads, info.model_config.ffn)
    assert stated == (12, 1, 24) and info.model_config.head_size == 8
    assert metrics["width_after"] == info.about["width"] == expected._asdict()
    assert metrics["width_before"] == Widths(16, 2, 2, 8, 48)._asdict()
    gone = metrics["parameters_before"] - metrics["parameters_after"]
    assert gone == metrics["removed_parameters"] > 0
    assert gone == metrics["body_parameters_before"] - metrics["body_parameters_after"]
    assert metrics["parameters_after"] == saved(narrow.path)["parameters"]
    stored = sum(v.size for path in narrow.path.rglob("*.safetensors") for v in load_file(path).values())
    assert stored - 12 == metrics["parameters_after"]  # the row of words that nothing reads
    assert info.about["seed"] == read_info(teacher.path).about["seed"]
    assert model.input_projection.weight.shape == (12, 8)
    card = cost_card(model)
    assert card is not None and {tuple(shape) for shape in card["shapes"]} == {
        (12, 8),
        (8, 12),
        (12, 24),
        (24, 12),
    }
    assert card["parts"]["blocks"]["products"]["last_pair"] == 4 * 8


def test_keeping_everything_changes_nothing(
    teacher: Bound, prepared: Prepared, make_context: MakeContext
) -> None:
    narrow, metrics = prune(teacher, make_context, ffn=48, heads=2, hidden=16)
    assert metrics["removed_parameters"] == 0
    assert torch.allclose(user_vectors(narrow, prepared), user_vectors(teacher, prepared), atol=1e-6)


def test_the_original_is_only_read(teacher: Bound, make_context: MakeContext) -> None:
    before = digests(teacher.path)
    prune(teacher, make_context, hidden=12, importance="taylor")
    assert digests(teacher.path) == before


@importances
def test_the_same_seed_keeps_the_same(importance: str, teacher: Bound, make_context: MakeContext) -> None:
    first, _ = prune(teacher, make_context, "a", ffn=24, importance=importance)
    second, _ = prune(teacher, make_context, "b", ffn=24, importance=importance)
    assert kept_in(first) == kept_in(second)


def test_a_pretrained_body_is_narrowed_by_its_own_config(
    tmp_path: Path, prepared: Prepared, teacher: Bound, make_context: MakeContext
) -> None:
    backbone = teacher.path / "backbone"
    model = {"kind": "llm", "backbone": str(backbone), "item_dim": 8, "dropout": 0.0}
    source, _ = train_tiny(tmp_path / "pretrained", prepared, model, epochs=1)
    assert config_for(ffn=12).problems({"source": shape_of(source)}) == []
    narrow, metrics = prune(source, make_context, ffn=12, heads=1)
    assert metrics["width_after"]["ffn"] == 12
    assert model_of(narrow).body.config.num_attention_heads == 1
    with pytest.raises(InputError, match="cannot keep 500: there are 48"):
        prune(source, make_context, "refused", ffn=500)
