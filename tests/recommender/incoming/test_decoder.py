"""A Hugging Face decoder over item vectors scores as it did; a folder that is none is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from recommender.checkpoint import load_checkpoint, read_info
from recommender.errors import InputError
from recommender.models.config import LlmConfig
from recommender.models.interface import History
from tests.recommender.incoming.conftest import FOREIGN, ITEMS, MAX_LENGTH, Import, saved

HIDDEN, WIDTH = 16, 6
WORDS = ["<unk>", "bought", "items", ":", "next", "?"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2}


class E4SRec(nn.Module):
    """Reference: prompt, projected item vectors, prompt; the last state, projected back, meets the table.

    Histories are left-padded to the full window, padding is masked, and positions are 0, 1, 2, ...
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.table = torch.randn(FOREIGN + 1, WIDTH)
        self.input_proj = nn.Linear(WIDTH, HIDDEN)
        self.score = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, window: Tensor, prefix: list[int], suffix: list[int]) -> Tensor:
        words = self.backbone.get_input_embeddings()
        before, after = (
            words(torch.tensor([ids] * len(window), dtype=torch.long)) for ids in (prefix, suffix)
        )
        embeds = torch.cat((before, self.input_proj(self.table[window]), after), dim=1)
        mask = torch.cat((torch.ones(before.shape[:2]), window != 0, torch.ones(after.shape[:2])), dim=1)
        places = torch.arange(embeds.shape[1]).expand(len(window), -1)
        states = self.backbone(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=places)
        return self.score(states.last_hidden_state[:, -1]) @ self.table.T


def llama() -> LlamaModel:
    return LlamaModel(LlamaConfig(**SIZES, intermediate_size=24, max_position_embeddings=32)).eval()


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[E4SRec, dict[str, Any]]:
    """A model of others, and the options that import what it has saved below `theirs/`."""
    torch.manual_seed(4)
    return save_theirs(E4SRec(llama()).eval(), tmp_path / "theirs")


def save_theirs(model: E4SRec, folder: Path) -> tuple[E4SRec, dict[str, Any]]:
    model.backbone.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    np.save(folder / "table.npy", model.table.numpy())
    maps = {name: weight for name, weight in model.state_dict().items() if not name.startswith("backbone")}
    return model, {
        "format": "hf-decoder",
        "path": folder,
        "vectors": folder / "table.npy",
        "projections": saved(maps, folder.with_name("maps.safetensors")),
    }


def window_of(items: Tensor, numbers: np.ndarray) -> Tensor:
    """Our rows [B, L] as their numbers in a full window [B, MAX_LENGTH]."""
    theirs = torch.cat((torch.zeros(1, dtype=torch.long), torch.from_numpy(numbers)))[items]
    return nn.functional.pad(theirs, (MAX_LENGTH - items.shape[1], 0))


def scores(folder: Path, items: Tensor) -> Tensor:
    model = load_checkpoint(folder)
    with torch.no_grad():
        return model.user_vector(History(items)) @ model.item_table()[1:].T


HISTORIES = torch.tensor([[0, 0, 0, 4], [0, 9, 2, 7], [5, 3, 11, 24]])


@pytest.mark.parametrize(
    ("prefix", "suffix", "ids"),
    [("", "", ([], [])), ("bought items :", "next ?", ([1, 2, 3], [4, 5]))],
    ids=["bare", "prompted"],
)
def test_scores_are_those_of_the_reference(
    prefix: str, suffix: str, ids: Any, theirs: Any, bring_in: Import, item_map: Path, numbers: np.ndarray
) -> None:
    reference, options = theirs
    folder, _ = bring_in(**options, items=item_map, prefix=prefix, suffix=suffix, fixed_slots=True)
    with torch.no_grad():
        expected = reference(window_of(HISTORIES, numbers), *ids)[:, numbers]
    torch.testing.assert_close(scores(folder, HISTORIES), expected, atol=1e-5, rtol=1e-4)


def test_absolute_positions_are_those_of_the_full_window(
    tmp_path: Path, bring_in: Import, item_map: Path, numbers: np.ndarray
) -> None:
    torch.manual_seed(5)
    sizes = {"vocab_size": 6, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": MAX_LENGTH}
    reference = E4SRec(GPT2LMHeadModel(GPT2Config(**sizes)).eval().transformer).eval()
    _, options = save_theirs(reference, tmp_path / "theirs")
    with torch.no_grad():
        expected = reference(window_of(HISTORIES, numbers), [], [])[:, numbers]
    folder, _ = bring_in(**options, items=item_map, fixed_slots=True)
    torch.testing.assert_close(scores(folder, HISTORIES), expected, atol=1e-5, rtol=1e-4)
    moved, _ = bring_in(**options, items=item_map)
    assert not torch.allclose(scores(moved, HISTORIES), expected, atol=1e-3)


def test_a_language_model_is_read_without_its_head(theirs: Any, bring_in: Import, item_map: Path) -> None:
    _, options = theirs
    bare, _ = bring_in(**options, items=item_map)
    expected = scores(bare, HISTORIES)
    whole = LlamaForCausalLM(LlamaConfig.from_pretrained(options["path"])).eval()
    whole.model.load_state_dict(LlamaModel.from_pretrained(options["path"]).state_dict())
    whole.save_pretrained(options["path"])
    folder, _ = bring_in(**options, items=item_map)
    torch.testing.assert_close(scores(folder, HISTORIES), expected)


def test_what_was_imported_is_told(theirs: Any, bring_in: Import, item_map: Path) -> None:
    _, options = theirs
    folder, outputs = bring_in(**options, items=item_map, item_vectors="frozen")
    info = read_info(folder)
    config = info.model_config
    assert isinstance(config, LlmConfig) and config.item_vectors == "frozen"
    assert (config.layers, config.item_dim, config.hidden) == (3, WIDTH, HIDDEN)
    assert info.blocks == {"user": 3} and outputs.metrics["items_matched"] == ITEMS
    assert not load_checkpoint(folder).get_parameter("items.weight").requires_grad


def test_a_decoder_over_its_own_embeddings_needs_no_projections(
    tmp_path: Path, bring_in: Import, item_map: Path, numbers: np.ndarray
) -> None:
    torch.manual_seed(6)
    backbone = LlamaModel(LlamaConfig(**SIZES | {"vocab_size": FOREIGN + 1}, intermediate_size=24)).eval()
    backbone.save_pretrained(tmp_path / "theirs")
    table = backbone.get_input_embeddings().weight.detach()
    vectors = saved({"item_emb": table.clone()}, tmp_path / "table.safetensors")
    options = {"format": "hf-decoder", "path": tmp_path / "theirs", "vectors": vectors}
    folder, _ = bring_in(**options, items=item_map, projections="identity")
    window = window_of(HISTORIES, numbers)
    with torch.no_grad():
        states = backbone(input_ids=window, attention_mask=(window != 0).long()).last_hidden_state[:, -1]
    expected = (states @ table.T)[:, numbers]
    torch.testing.assert_close(scores(folder, HISTORIES), expected, atol=1e-5, rtol=1e-4)


def test_fresh_projections_are_drawn_from_the_seed_and_told(
    theirs: Any, bring_in: Import, item_map: Path
) -> None:
    _, options = theirs
    values = options | {"projections": None}
    first, outputs = bring_in(**values, items=item_map)
    expected = scores(first, HISTORIES)
    torch.testing.assert_close(scores(bring_in(**values, items=item_map)[0], HISTORIES), expected)
    warning = outputs.metrics.get("warning")
    assert warning is None or "fresh" in warning


def _rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _config(folder: Path, **values: Any) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | values))


def _lose(folder: Path) -> None:
    _rewrite(folder, lambda weights: weights.pop("layers.1.mlp.up_proj.weight"))


def _add(folder: Path) -> None:
    _rewrite(folder, lambda weights: weights.update({"vision.weight": torch.zeros(2, 2)}))


def _diverge(folder: Path) -> None:
    _rewrite(folder, lambda weights: weights["layers.2.mlp.up_proj.weight"][0].fill_(float("inf")))


def _resize(folder: Path) -> None:
    _rewrite(folder, lambda weights: weights.update({"norm.weight": torch.ones(HIDDEN + 1)}))


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _encoder(folder: Path) -> None:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=6, **sizes)).save_pretrained(folder)


def _both(folder: Path) -> None:
    T5Model(T5Config(vocab_size=6, d_model=HIDDEN, num_layers=1, num_heads=2, d_ff=8)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_lose, "weights are missing: layers.1.mlp.up_proj.weight"),
        (_add, "weights of something else: vision.weight"),
        (_resize, "weights of another size"),
        (_diverge, "layers.2.mlp.up_proj.weight holds values that are NaN or infinite"),
        (_adapter, "merge_and_unload"),
        (_pickled, "pickled weights (pytorch_model.bin)"),
        (_encoder, "is no decoder: early states of a bert"),
        (_both, "an encoder with a decoder"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no config of a Hugging Face model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "transformers cannot load it"),
        (lambda folder: _config(folder, model_type="unheard-of"), "transformers cannot load it"),
        (lambda folder: _config(folder, quantization_config={"load_in_4bit": True}), "quantized"),
        (lambda folder: _config(folder, max_position_embeddings=7), "7 positions, but 8 are needed"),
    ],
)
def test_a_folder_that_is_no_whole_decoder_is_refused(
    harm: Any, told: str, theirs: Any, bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    _, options = theirs
    harm(options["path"])
    with pytest.raises(InputError) as caught:
        bring_in(**options, items=item_map)
    assert told in str(caught.value) and str(options["path"]) in str(caught.value)
    assert not (tmp_path / "run" / "out" / "checkpoint").exists()


def test_a_window_with_a_prompt_must_fit(theirs: Any, bring_in: Import, item_map: Path) -> None:
    _, options = theirs
    _config(options["path"], max_position_embeddings=10)
    with pytest.raises(InputError, match=r"10 positions, but 11 are needed.*\n.*max_length to 7 or less"):
        bring_in(**options, items=item_map, prefix="bought items :")


def test_item_vectors_that_are_too_narrow_are_refused(
    theirs: Any, bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    _, options = theirs
    np.save(tmp_path / "narrow.npy", np.ones((FOREIGN + 1, 3)))
    with pytest.raises(InputError, match=r"item_dim is 3.*greater than or equal to 4"):
        bring_in(**options | {"vectors": tmp_path / "narrow.npy", "projections": None}, items=item_map)
    assert not (tmp_path / "run" / "out" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("maps", "told"),
    [
        ({"input_proj.weight": (HIDDEN, WIDTH)}, "lacks score.weight"),
        ({"input_proj.weight": (HIDDEN, 3), "score.weight": (WIDTH, HIDDEN)}, "16 x 3, not 16 x 6"),
        ({"input_proj.weight": (HIDDEN, WIDTH), "score.weight": (HIDDEN, WIDTH)}, "16 x 6, not 6 x 16"),
    ],
)
def test_projections_that_do_not_fit_are_refused(
    maps: Any, told: str, theirs: Any, bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    _, options = theirs
    file = saved({name: torch.zeros(shape) for name, shape in maps.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError) as caught:
        bring_in(**options | {"projections": file}, items=item_map)
    assert told in str(caught.value)


def test_identity_needs_vectors_of_the_decoders_width(theirs: Any, bring_in: Import, item_map: Path) -> None:
    _, options = theirs
    with pytest.raises(InputError, match="item vectors are 6 wide, the decoder 16"):
        bring_in(**options | {"projections": "identity"}, items=item_map)


def test_a_prompt_without_a_tokenizer_is_refused(theirs: Any, bring_in: Import, item_map: Path) -> None:
    _, options = theirs
    for file in options["path"].glob("token*"):
        file.unlink()
    with pytest.raises(InputError, match="a prompt needs the tokenizer"):
        bring_in(**options, items=item_map, prefix="bought items :")
