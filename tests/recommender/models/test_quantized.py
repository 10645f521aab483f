"""QLoRA: what is saved is what was trained, and bitsandbytes' silent corruption is kept out and found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModel, BitsAndBytesConfig, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from recommender.checkpoint import load_checkpoint, save_checkpoint
from recommender.errors import InputError, StageError
from recommender.models.adapters import add_adapters, merge_adapters
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import History, SequentialRecommender
from recommender.models.quantized import check_intact, dequantize, digests, is_quantized, load_quantized
from recommender.training.stage import TrainConfig, run
from recommender.training.validation import validation_quality
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from

bnb = pytest.importorskip("bitsandbytes", reason="needs recpress[quantize]")
PACKS = pytest.mark.skipif(
    not bnb.functional.has_avx512bf16(), reason="bitsandbytes packs weights on CPUs with avx512_bf16 only"
)
N_ITEMS = 20
HISTORY = History(torch.tensor([[0, 3, 4, 5], [1, 2, 3, 4]]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose rows span two blocks of 64, as absmax must have two columns to be corrupted."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=8, initializer_range=0.3)
    LlamaModel(config).save_pretrained(path := tmp_path_factory.mktemp("decoder"))
    return path


def config_of(folder: Path, load_in: str | None = "nf4", **values: Any) -> LlmConfig:
    entries = {"backbone": str(folder), "item_dim": 8, "dropout": 0.0, "lora": {"r": 2}, "load_in": load_in}
    return LlmConfig.model_validate(entries | values)


def build(folder: Path, load_in: str | None = "nf4", **values: Any) -> SequentialRecommender:
    return build_model(config_of(folder, load_in, **values), n_items=N_ITEMS, max_length=10, seed=1)


def body_of(model: SequentialRecommender) -> HuggingFaceBody:
    body = model.bodies()["user"]
    assert isinstance(body, HuggingFaceBody)
    return body


def vectors(model: SequentialRecommender) -> Tensor:
    with torch.inference_mode():
        return model.eval().user_vector(HISTORY)


def train_adapters(model: SequentialRecommender, steps: int = 4) -> None:
    lora = config_of(Path(".")).lora
    assert lora is not None
    add_adapters(body_of(model), lora, seed=0)
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        model.train()
        (vectors_loss(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        vectors(model)  # the evaluation in between that packs


def vectors_loss(model: SequentialRecommender) -> Tensor:
    scores = model.user_vector(HISTORY) @ model.item_table().T
    return torch.nn.functional.cross_entropy(scores, torch.tensor([6, 5]))


@PACKS
def test_left_alone_bitsandbytes_corrupts_its_weights_and_the_guard_says_so(folder: Path) -> None:
    """The bug itself: if this fails, bitsandbytes has mended it, and the guard may go."""
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    body = AutoModel.from_pretrained(folder, dtype=torch.float32, quantization_config=how, device_map="cpu")
    embeds = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(1))

    def answer() -> Tensor:
        with torch.inference_mode():
            states: Tensor = body.eval()(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return states

    body.quantized_digests = dict(digests(body))
    check_intact(body)
    first = answer()
    body.state_dict()
    assert torch.nn.functional.cosine_similarity(first, answer(), dim=-1).mean() < 0.9
    with pytest.raises(StageError, match="14 of 14 quantized layers"):
        check_intact(body)
    with pytest.raises(StageError, match="wrong"):
        dequantize(body)


@PACKS
def test_a_body_that_an_evaluation_would_change_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recommender.models.quantized.never_pack", lambda backbone: None)
    with pytest.raises(StageError, match="bitsandbytes has changed"):
        load_quantized(str(folder), "nf4")


def test_a_body_in_which_nothing_is_quantized_is_refused(tmp_path: Path) -> None:
    LlamaModel(
        LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=0, vocab_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="nothing in it was quantized"):
        load_quantized(str(tmp_path), "nf4")


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_a_change_of_any_quantized_tensor_is_found(folder: Path, load_in: Any) -> None:
    backbone = load_quantized(str(folder), load_in)
    layer = backbone.layers[1].mlp.up_proj
    scale = layer.state.SCB if load_in == "int8" else layer.weight.quant_state.state2.absmax
    with torch.no_grad():
        scale += 1e-3
    with pytest.raises(StageError, match=r"1 of 14 .*layers\.1\.mlp\.up_proj"):
        check_intact(backbone)


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_evaluations_and_saved_states_between_steps_change_no_frozen_weight(
    folder: Path, load_in: str
) -> None:
    model = build(folder, load_in)
    backbone = body_of(model).backbone
    before = dict(digests(backbone))
    train_adapters(model)
    model.state_dict()
    assert len(before) == 14 and dict(digests(backbone)) == before


@pytest.mark.parametrize(("load_in", "nearness"), [("nf4", 1e-5), ("int8", 0.05)])
def test_merged_and_reloaded_it_answers_as_it_was_trained(
    folder: Path, load_in: str, nearness: float, tmp_path: Path
) -> None:
    """int8 differs a little: while trained, its activations are in 8 bits, too."""
    model, prepared = build(folder, load_in), prepared_from(tmp_path / "d", [[1, 2, 3]], N_ITEMS)
    untrained = vectors(model)
    train_adapters(model)
    trained = vectors(model)
    assert merge_adapters(body_of(model)) == 2 * 3
    assert not is_quantized(body_of(model).backbone)
    save_checkpoint(model, tmp_path / "c", prepared=prepared, model_config=config_of(folder, load_in))
    reloaded = load_checkpoint(tmp_path / "c", prepared=prepared)
    assert (vectors(reloaded) - trained).norm() / trained.norm() < nearness
    assert (untrained - trained).norm() / trained.norm() > 2 * nearness
    assert torch.equal(vectors(reloaded), vectors(model))


def test_a_checkpoint_is_plain(folder: Path, tmp_path: Path) -> None:
    model, prepared = build(folder), prepared_from(tmp_path / "d", [[1, 2, 3]], N_ITEMS)
    with pytest.raises(AssertionError, match="quantized"):
        save_checkpoint(model, tmp_path / "c", prepared=prepared, model_config=config_of(folder))
    train_adapters(model, 1)
    merge_adapters(body_of(model))
    save_checkpoint(model, tmp_path / "c", prepared=prepared, model_config=config_of(folder))
    written = json.loads((tmp_path / "c/backbone/config.json").read_text())
    assert "quantization_config" not in written and written["dtype"] == "float32"
    plain = AutoModel.from_pretrained(tmp_path / "c/backbone")
    assert {tensor.dtype for tensor in plain.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_the_stage_trains_and_reports_the_quality_of_what_it_saved(
    folder: Path, load_in: str, tmp_path: Path
) -> None:
    data = prepared_from(tmp_path / "data", cyclic_histories(60, N_ITEMS, 9), N_ITEMS)
    context = context_for(data, tmp_path)
    entries: dict[str, Any] = {"stage": "train", "as": "m", "epochs": 4, "batch_size": 16}
    entries |= {"learning_rate": 1e-2, "patience": None, "model": config_of(folder, load_in, layers=1)}
    outputs = run(TrainConfig.model_validate(entries), {}, context)
    history = outputs.metrics["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    saved = load_checkpoint(context.folder / "checkpoint", prepared=data)
    found = validation_quality(saved, context)["ndcg@10"]
    assert found == pytest.approx(outputs.metrics["best_ndcg"], abs=1e-6)
    assert found == pytest.approx(outputs.metrics["quantized_ndcg"], abs=0.1)


def test_a_frozen_body_in_four_bits_takes_a_fraction_of_the_memory(folder: Path) -> None:
    quantized, plain = (body_of(build(folder, load_in)).backbone for load_in in ("nf4", None))
    assert quantized.get_memory_footprint() < plain.get_memory_footprint() / 5


@pytest.mark.parametrize(
    "values", [{"backbone": "x", "load_in": "nf4"}, {"layers": 2, "load_in": "int8", "lora": {"r": 2}}]
)
def test_quantized_weights_without_adapters_or_a_backbone_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="needs a `backbone` to load and `lora`"):
        LlmConfig.model_validate(values)


def test_a_backbone_that_is_stored_quantized_is_refused(folder: Path, tmp_path: Path) -> None:
    load_quantized(str(folder), "nf4").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="stored quantized"):
        build(tmp_path, None)


def test_a_family_without_linear_layers_is_refused(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="gpt2"):
        build(tmp_path)
