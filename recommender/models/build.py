"""From a `model:` section to a model; the only place where configs and models meet."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from recommender.errors import InputError
from recommender.models.config import (
    ItemVectorsConfig,
    LlmConfig,
    ModelConfig,
    PopularityConfig,
    SasrecConfig,
)
from recommender.models.hf_body import HuggingFaceBody, drop_word_embeddings
from recommender.models.interface import ITEM_STD, SequentialRecommender
from recommender.models.item_vectors import ItemVectors
from recommender.models.llm import LlmRecommender
from recommender.models.popularity import Popularity
from recommender.models.sasrec import SasRec


def build_model(
    config: ModelConfig,
    *,
    n_items: int,
    max_length: int,
    seed: int,
    item_vectors: Tensor | None = None,
    counts: Tensor | None = None,
) -> SequentialRecommender:
    """Build a recommender with weights drawn from `seed`.

    `item_vectors` [n_items + 1, D] start (or freeze) an llm's item table, or are the whole model; `counts`
    [n_items + 1] are what popularity recommends. The global random state is left as it was. Raises InputError
    for sizes that do not fit.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        match config:
            case PopularityConfig():
                return Popularity(n_items=n_items, max_length=max_length, counts=counts)
            case SasrecConfig():
                return _sasrec(config, n_items, max_length)
            case ItemVectorsConfig():
                return _table(config, n_items, max_length, item_vectors)
            case LlmConfig():
                return _llm(config, n_items, max_length, item_vectors)


def _table(
    config: ItemVectorsConfig, n_items: int, max_length: int, item_vectors: Tensor | None
) -> ItemVectors:
    if item_vectors is None:
        raise InputError(
            "a table of item vectors cannot be built from nothing",
            where="model.kind",
            fix="bring one in: {stage: import, format: item-vectors, ...}",
        )
    _check_count(item_vectors, n_items)
    return ItemVectors(item_vectors.clone(), max_length=max_length, pool=config.pool)


def _check_count(item_vectors: Tensor, n_items: int) -> None:
    if len(item_vectors) != n_items + 1:
        raise InputError(
            f"{len(item_vectors) - 1} item vectors for a catalogue of {n_items}", where="model.items_from"
        )


def _sasrec(config: SasrecConfig, n_items: int, max_length: int) -> SasRec:
    return SasRec(
        n_items=n_items,
        max_length=max_length,
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        dropout=config.dropout,
        norm=config.norm,
        padding=config.padding,
        norm_eps=config.norm_eps,
    )


def _llm(config: LlmConfig, n_items: int, max_length: int, item_vectors: Tensor | None) -> LlmRecommender:
    if item_vectors is None and config.item_vectors == "frozen":
        raise InputError(
            "frozen item vectors need a checkpoint to come from",
            where="model.items_from",
            fix="train a sasrec stage first and name it in `items_from`, or use item_vectors: trained",
        )
    if item_vectors is not None:
        _check_count(item_vectors, n_items)
    backbone = pretrained(config) if config.backbone else from_sizes(config, max_length)
    prefix, suffix = (_prompt(backbone, config, text) for text in (config.prefix, config.suffix))
    drop_word_embeddings(backbone)
    body = HuggingFaceBody(backbone, dropout=config.dropout)
    if config.backbone and config.layers is not None:
        if config.layers > len(body.blocks):
            raise InputError(
                f"layers: {config.layers}, but {config.backbone} has {len(body.blocks)} blocks",
                where="model.layers",
            )
        body.keep(range(config.layers))
    if item_vectors is None:
        item_vectors = torch.randn(n_items + 1, config.item_dim) * ITEM_STD
        item_vectors[0] = 0
    return LlmRecommender(
        body,
        item_vectors=item_vectors.clone(),
        train_items=config.item_vectors == "trained",
        max_length=max_length,
        dropout=config.dropout,
        prefix=prefix,
        suffix=suffix,
        fixed_slots=config.fixed_slots,
    )


def pretrained(config: LlmConfig) -> PreTrainedModel:
    """Load the body by name or from a folder, in fp32 or as `load_in` says.

    Raises InputError when it cannot be had.
    """
    assert config.backbone is not None
    try:
        if config.load_in is not None:
            from recommender.models.quantized import load_quantized

            return load_quantized(config.backbone, config.load_in)
        body: PreTrainedModel = AutoModel.from_pretrained(config.backbone, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the backbone {config.backbone!r}: {str(error).splitlines()[0]}",
            where="model.backbone",
            fix="give a folder made by save_pretrained, or the name of a model that can be downloaded",
        ) from error
    if getattr(body, "hf_quantizer", None) is not None:
        raise InputError(
            f"the weights of {config.backbone!r} are stored quantized, and such weights cannot be trained",
            where="model.backbone",
            fix="give the plain model, and load_in with lora to hold it in 4 or 8 bits while it is trained",
        )
    return body


def from_sizes(config: LlmConfig, max_length: int) -> PreTrainedModel:
    """A body with random weights from the sizes in a config, which has checked that they fit."""
    kv_heads = config.kv_heads or config.heads
    built = AutoConfig.for_model(config.family, **_sizes(config, kv_heads, max_length))
    body: PreTrainedModel = AutoModel.from_config(built)  # type: ignore[no-untyped-call]
    return body


def _sizes(config: LlmConfig, kv_heads: int, max_length: int) -> dict[str, Any]:
    """Config entries of a family; names that a family does not know are left out, dropout inside it is
    off.
    """
    assert config.layers is not None
    ffn = config.ffn or 3 * config.hidden
    common: dict[str, Any] = {
        "vocab_size": 1,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": max(max_length, 2),
        "use_cache": False,
    }
    match config.family:
        case "gpt2":
            return common | {"n_inner": ffn, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        case "opt":
            return common | {"ffn_dim": ffn, "word_embed_proj_dim": config.hidden, "dropout": 0.0}
        case "gpt_neox":
            return common | {"intermediate_size": ffn}
    gated = common | {"intermediate_size": ffn, "num_key_value_heads": kv_heads}
    own = ("qwen3", "gemma", "gemma2", "gemma3_text")  # their defaults are not hidden / heads
    if config.head_dim is not None or config.family in own:
        gated["head_dim"] = config.head_size
    if config.family in ("gemma2", "gemma3_text"):
        gated["query_pre_attn_scalar"] = config.head_size
    return gated


def _prompt(backbone: PreTrainedModel, config: LlmConfig, text: str) -> Tensor | None:
    """Embed a prompt [P, H] with the backbone's own tokenizer and word embeddings, without special tokens."""
    if not text:
        return None
    assert config.backbone is not None  # the config has checked it
    try:
        tokens = AutoTokenizer.from_pretrained(config.backbone)(text, add_special_tokens=False)["input_ids"]
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer beside the backbone {config.backbone!r}: {str(error).splitlines()[0]}",
            where="model.prefix / model.suffix",
        ) from error
    with torch.no_grad():
        embedded: Tensor = backbone.get_input_embeddings()(torch.tensor(tokens))
    return embedded.detach().clone()
