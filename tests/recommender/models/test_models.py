"""Properties that every recommender has, family by family."""

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModel, LlamaConfig, LlamaModel

from recommender.checkpoint import body_parameters, load_checkpoint, read_info, save_checkpoint
from recommender.errors import InputError
from recommender.losses import full_softmax
from recommender.models.adapters import add_adapters, merge_adapters
from recommender.models.build import build_model
from recommender.models.config import (
    FAMILIES,
    LlmConfig,
    LoraSettings,
    ModelConfig,
    PopularityConfig,
    SasrecConfig,
)
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import History, SequentialRecommender
from recommender.models.last_position import LastPosition
from recommender.models.llm import LlmRecommender
from tests.recommender.fixtures import cyclic_histories, prepared_from

N_ITEMS = 30
CONFIGS: dict[str, ModelConfig] = {
    family: LlmConfig(family=family, layers=3, hidden=16, heads=2, item_dim=8)  # type: ignore[arg-type]
    for family in FAMILIES
} | {
    "sasrec": SasrecConfig(hidden=16, heads=2, layers=3),
    "sasrec-query": SasrecConfig(hidden=16, heads=2, layers=3, norm="query", padding="zeroed"),
    "sasrec-attended": SasrecConfig(hidden=16, heads=2, layers=3, norm="pre", padding="attended"),
    "fixed-slots": LlmConfig(family="gpt2", layers=3, hidden=16, heads=2, item_dim=8, fixed_slots=True),
    "popularity": PopularityConfig(),
}
DEEP = [name for name in CONFIGS if name != "popularity"]


def model_of(name: str) -> SequentialRecommender:
    return build_model(
        CONFIGS[name], n_items=N_ITEMS, max_length=12, seed=5, counts=torch.arange(N_ITEMS + 1.0)
    ).eval()


def batch(seed: int = 0) -> torch.Tensor:
    items = torch.randint(1, N_ITEMS + 1, (4, 7), generator=torch.Generator().manual_seed(seed))
    items[0, :4] = 0
    items[1, :6] = 0
    return items


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_determinism(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        vectors = model.user_vector(History(batch()))
        assert model.item_table().shape == (N_ITEMS + 1, vectors.shape[1])
        assert torch.equal(vectors, model.user_vector(History(batch())))
        assert torch.equal(vectors, model_of(name).user_vector(History(batch())))


@pytest.mark.parametrize("name", DEEP)
def test_last_only_equals_the_whole_pass(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        hidden = model.hidden(History(batch()))
        torch.testing.assert_close(
            model.user_vector(History(batch())), model.project(hidden.final[:, -1]), atol=2e-6, rtol=1e-5
        )
    assert len(hidden.blocks) == 3
    assert not torch.allclose(hidden.blocks[-1], hidden.final)  # the raw stream, not the normed one


@pytest.mark.parametrize("name", FAMILIES)
def test_last_block_does_no_work_for_other_positions(name: str) -> None:
    model = model_of(name)
    assert isinstance(model, LlmRecommender)
    block = model.body.blocks[-1]
    assert LastPosition.knows(block)
    feed_forward = block.fc1 if name == "opt" else block.mlp
    seen: list[int] = []
    feed_forward.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[-2]))
    with torch.no_grad():
        model.user_vector(History(batch()))
    assert seen == [1]


@pytest.mark.parametrize("name", DEEP)
def test_left_padding_changes_nothing(name: str) -> None:
    model, items = model_of(name), batch()
    padded = torch.cat((torch.zeros(4, 5, dtype=torch.long), items), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            model.user_vector(History(items)), model.user_vector(History(padded)), atol=2e-6, rtol=1e-5
        )
        alone = model.user_vector(History(items[1:2, -1:]))
        torch.testing.assert_close(model.user_vector(History(items))[1:2], alone, atol=2e-6, rtol=1e-5)
        assert torch.isfinite(model.user_vector(History(torch.zeros(2, 3, dtype=torch.long)))).all()


@pytest.mark.parametrize("name", DEEP)
def test_no_position_sees_a_later_one(name: str) -> None:
    model, items = model_of(name), batch()
    changed = items.clone()
    changed[:, -1] = items[:, -1] % N_ITEMS + 1
    with torch.no_grad():
        before, after = (model.hidden(History(rows)).final for rows in (items, changed))
    torch.testing.assert_close(before[2:, :-1], after[2:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("name", DEEP)
def test_skipping_equals_cutting_and_survives_a_save(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    prepared = prepared_from(tmp_path / "data", cyclic_histories(5, N_ITEMS, 6), N_ITEMS)
    with torch.no_grad():
        skipped = model.hidden(History(batch()), blocks=[0, 2]).final
        whole = model.hidden(History(batch())).final
        model.bodies()["user"].keep([0, 2])
        cut = model.hidden(History(batch())).final
        assert torch.equal(skipped, cut) and not torch.allclose(cut, whole)
        save_checkpoint(model, tmp_path / "ck", prepared=prepared, model_config=CONFIGS[name])
        again = load_checkpoint(tmp_path / "ck", prepared=prepared)
        assert torch.equal(again.hidden(History(batch())).final, cut)
    assert read_info(tmp_path / "ck").blocks == {"user": 2}
    if isinstance(model, LlmRecommender):
        _, report = AutoModel.from_pretrained(tmp_path / "ck" / "backbone", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("name", ["llama", "sasrec", "gpt2"])
def test_first_loss_is_near_log_of_catalogue_and_padding_row_stays_zero(name: str) -> None:
    model = model_of(name).train()
    hidden = model.hidden(History(batch()))
    states = model.project(hidden.final[:, -1])
    loss = full_softmax(states, model.item_table(), torch.tensor([1, 2, 3, 4])) / 4
    assert abs(loss.item() - torch.log(torch.tensor(float(N_ITEMS))).item()) < 0.7
    loss.backward()
    table = model.items.weight  # type: ignore[union-attr]
    assert table.grad is not None and table.grad[0].abs().sum() == 0  # type: ignore[union-attr]
    assert table[0].abs().sum() == 0  # type: ignore[index]


def test_body_parameters_leave_tables_out() -> None:
    model = model_of("llama")
    blocks = sum(p.numel() for p in model.body.blocks.parameters())  # type: ignore[union-attr, operator]
    assert body_parameters(model) == blocks + 16 + (8 * 16 + 16) + 16 * 8


def test_frozen_item_vectors_are_taken_over_and_not_trained() -> None:
    vectors = torch.randn(N_ITEMS + 1, 8)
    config = LlmConfig(layers=1, hidden=16, item_dim=8, item_vectors="frozen", items_from="sas")
    model = build_model(config, n_items=N_ITEMS, max_length=9, seed=0, item_vectors=vectors)
    assert torch.equal(model.item_table(), vectors) and not model.item_table().requires_grad
    with pytest.raises(InputError, match="frozen item vectors"):
        build_model(config, n_items=N_ITEMS, max_length=9, seed=0)
    with pytest.raises(InputError, match="catalogue of 31"):
        build_model(config, n_items=31, max_length=9, seed=0, item_vectors=vectors)


def test_adapters_train_alone_and_merge_to_the_same_function() -> None:
    model = model_of("llama")
    assert isinstance(model, LlmRecommender)
    add_adapters(model.body, LoraSettings(r=2, dropout=0.0), seed=0)
    trained = [name for name, p in model.body.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    for name, parameter in model.body.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        before = model.user_vector(History(batch()))
        assert merge_adapters(model.body) == 9  # 3 linear layers in each of 3 blocks
        torch.testing.assert_close(model.user_vector(History(batch())), before, atol=1e-5, rtol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(InputError, match="no linear layer named nope"):
        add_adapters(model.body, LoraSettings(targets=("nope",)), seed=0)


@pytest.mark.parametrize(
    ("family", "fused"), [("phi3", "qkv_proj"), ("gpt_neox", "query_key_value"), ("llama", "q_proj")]
)
def test_what_is_validated_with_adapters_is_what_they_merge_to(family: str, fused: str) -> None:
    """The last block computes one position only where it is served: not by weights without their adapters."""
    model = model_of(family)
    assert isinstance(model, LlmRecommender)
    add_adapters(model.body, LoraSettings(r=2, dropout=0.0, targets=(fused,)), seed=0)
    for name, parameter in model.body.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.eval()
    with torch.no_grad():
        served = model.user_vector(History(batch()))
        merge_adapters(model.body)
        torch.testing.assert_close(model.user_vector(History(batch())), served, atol=1e-5, rtol=1e-4)


def test_adapters_start_where_their_seed_says() -> None:
    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        model = model_of("llama")
        assert isinstance(model, LlmRecommender)
        state = torch.get_rng_state()
        add_adapters(model.body, LoraSettings(r=2), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: p for name, p in model.body.named_parameters() if "lora_A" in name}

    one, again, other = start(1, 5), start(1, 6), start(2, 5)
    assert one and all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "buys", ":", "next", "user"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    LlamaModel(
        LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
        )
    ).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def test_pretrained_folder_gives_body_and_prompts(language_model: Path, tmp_path: Path) -> None:
    config = LlmConfig(
        backbone=str(language_model), layers=2, item_dim=8, prefix="user buys :", suffix="next :"
    )
    model = build_model(config, n_items=N_ITEMS, max_length=12, seed=0).eval()
    assert isinstance(model, LlmRecommender)
    assert model.prefix.shape == (3, 16) and model.suffix.shape == (2, 16) and len(model.body.blocks) == 2
    original = LlamaModel.from_pretrained(language_model)
    assert torch.equal(model.prefix[0], original.embed_tokens.weight[4])
    hidden = model.hidden(History(batch()))
    assert hidden.at[0].tolist() == [3, 4, 5, 6, 7, 8, 11]
    padded = torch.cat((torch.zeros(4, 5, dtype=torch.long), batch()), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            model.user_vector(History(batch())), model.user_vector(History(padded)), atol=2e-6, rtol=1e-5
        )
        prepared = prepared_from(tmp_path / "data", cyclic_histories(5, N_ITEMS, 6), N_ITEMS)
        save_checkpoint(model, tmp_path / "ck", prepared=prepared, model_config=config)
        again = load_checkpoint(tmp_path / "ck")
        assert torch.equal(again.user_vector(History(batch())), model.user_vector(History(batch())))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "llm", "layers": 1, "hidden": 30, "heads": 4}, "must divide"),
        ({"kind": "llm", "layers": 1, "hidden": 32, "heads": 4, "kv_heads": 3}, "must divide"),
        ({"kind": "llm"}, "number of blocks"),
        ({"kind": "llm", "layers": 1, "prefix": "hello"}, "tokenizer"),
        ({"kind": "llm", "layers": 1, "item_vectors": "frozen"}, "items_from"),
        ({"kind": "llm", "layers": True}, "must be a number, not true"),
        ({"kind": "sasrec", "hidden": 10, "heads": 4}, "not divisible"),
    ],
)
def test_sections_that_do_not_fit_are_refused_before_anything_is_built(
    section: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ModelConfig).validate_python(section)


def test_a_backbone_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(InputError, match="cannot load the backbone"):
        build_model(LlmConfig(backbone="/no/such/model"), n_items=N_ITEMS, max_length=9, seed=0)


def test_too_many_layers_for_a_backbone_are_refused(language_model: Path) -> None:
    with pytest.raises(InputError, match="has 3 blocks"):
        build_model(LlmConfig(backbone=str(language_model), layers=4), n_items=5, max_length=9, seed=0)


def test_a_body_without_blocks_is_refused() -> None:
    backbone = LlamaModel(
        LlamaConfig(vocab_size=2, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    )
    backbone.config.num_hidden_layers = 5
    with pytest.raises(InputError, match="is it a decoder"):
        HuggingFaceBody(backbone)


class TestCheckpointRefusals:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        prepared = prepared_from(tmp_path / "data", cyclic_histories(5, N_ITEMS, 6), N_ITEMS)
        save_checkpoint(model_of("llama"), tmp_path / "ck", prepared=prepared, model_config=CONFIGS["llama"])
        return tmp_path / "ck"

    def test_another_data_set(self, saved: Path, tmp_path: Path) -> None:
        other = prepared_from(tmp_path / "other", cyclic_histories(5, 20, 6), 20)
        with pytest.raises(InputError, match="another data set"):
            load_checkpoint(saved, prepared=other)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such checkpoint"):
            load_checkpoint(tmp_path / "nope")

    @pytest.mark.parametrize("file", ["model.safetensors", "backbone/model.safetensors"])
    def test_truncated_weights(self, saved: Path, file: str) -> None:
        data = (saved / file).read_bytes()
        (saved / file).write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError):
            load_checkpoint(saved)

    def test_body_with_lost_weights(self, saved: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = saved / "backbone" / "model.safetensors"
        weights = load_file(file)
        del weights["norm.weight"]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match="lacks weights"):
            load_checkpoint(saved)
