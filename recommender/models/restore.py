"""The empty shell of a saved model, ready for its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModel

from recommender.errors import InputError
from recommender.models.build import build_model
from recommender.models.config import ItemVectorsConfig, LlmConfig, SasrecConfig, backbone_folder
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import SequentialRecommender
from recommender.models.item_vectors import ItemVectors
from recommender.models.llm import LlmRecommender

if TYPE_CHECKING:
    from recommender.checkpoint import CheckpointInfo


def empty_model(info: "CheckpointInfo", folder: Path, weights: Mapping[str, Tensor]) -> SequentialRecommender:
    """A model of the saved shape; the body of an llm comes from the checkpoint's own `backbone/`."""
    config = info.model_config
    if isinstance(config, LlmConfig):
        return _llm(config, info, folder, weights)
    if isinstance(config, ItemVectorsConfig):
        return ItemVectors(torch.empty_like(weights["items"]), max_length=info.max_length, pool=config.pool)
    if isinstance(config, SasrecConfig):
        config = config.model_copy(update={"layers": info.blocks["user"]})
    return build_model(config, n_items=info.n_items, max_length=info.max_length, seed=0)


def _llm(
    config: LlmConfig, info: "CheckpointInfo", folder: Path, weights: Mapping[str, Tensor]
) -> LlmRecommender:
    source = backbone_folder(folder)
    try:
        backbone, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the body: {str(error).splitlines()[0]}", where=str(source)) from error
    lost = [*report["missing_keys"], *report["mismatched_keys"]]
    if lost:  # transformers fills these with random numbers and goes on
        raise InputError(f"the body lacks weights: {sorted(map(str, lost))[:3]}", where=str(source))
    backbone.get_input_embeddings().requires_grad_(False)  # nothing reads them, so they get no gradient
    return LlmRecommender(
        HuggingFaceBody(backbone, dropout=config.dropout),
        item_vectors=torch.empty_like(weights["items.weight"]),
        train_items=config.item_vectors == "trained",
        max_length=info.max_length,
        dropout=config.dropout,
        prefix=weights["prefix"],
        suffix=weights["suffix"],
        fixed_slots=config.fixed_slots,
    )
