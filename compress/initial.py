"""What a pruned student starts from, besides the weights of its own source."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel

from compress.starts import start_problem
from recommender.checkpoint import CheckpointInfo
from recommender.errors import InputError
from recommender.files import digest_of
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, SasrecConfig
from recommender.models.hf_body import HuggingFaceBody, drop_word_embeddings
from recommender.models.interface import SequentialRecommender


def pruned(
    source: SequentialRecommender,
    info: CheckpointInfo,
    kept: Sequence[int],
    *,
    init: Literal["teacher", "base", "fresh"],
    seed: int,
) -> SequentialRecommender:
    """The model with only the blocks `kept`, and the weights that `init` asks for; `teacher` cuts `source`.

    `info` is what the checkpoint of `source` says of itself. Raises InputError for the base of an imported
    SASRec: what it was before its training is not known. That of an imported decoder is the imported body.
    Nor is it known for a body that was cut in width.
    """
    assert isinstance(info.model_config, LlmConfig | SasrecConfig)
    if lost := start_problem(init, info.model_config, "width" in info.about):
        raise InputError(lost, where="init")
    origin = origin_of(info, kept, seed)
    match init:
        case "teacher":
            source.bodies()["user"].keep(kept)
            return source
        case "base":
            if info.about.get("imported") == "sasrec":
                raise InputError(
                    "the body as it was before training is not known: the model was imported",
                    where="init: base",
                    fix="use init: teacher, or fresh",
                )
            return from_base(
                source,
                info.model_config,
                base_layers=origin["base_layers"],
                base_blocks=origin["base_blocks"],
                seed=fresh_seed(seed),
                source_seed=origin["seed"],
                base_items=origin.get("base_items", source.n_items),
            )
        case "fresh":
            return anew(source, info.model_config, layers=len(kept), seed=fresh_seed(seed))


def origin_of(info: CheckpointInfo, kept: Sequence[int], seed: int) -> dict[str, Any]:
    """Which blocks of the untrained body the kept ones are, so that pruning twice still finds it."""
    layers = info.blocks["user"]
    before = info.about.get("base_blocks", list(range(layers)))
    return {
        **{key: info.about[key] for key in ("imported", "base_items", "width") if key in info.about},
        "seed": info.about.get("seed", seed),
        "base_layers": info.about.get("base_layers", layers),
        "base_blocks": [before[block] for block in kept],
    }


def parameters_of(model: SequentialRecommender, blocks: Collection[int]) -> int:
    """Parameters in these blocks of the user body."""
    every = model.bodies()["user"].blocks
    return sum(tensor.numel() for block in blocks for tensor in every[block].state_dict().values())


def fresh_seed(seed: int) -> int:
    """Another seed for every seed: what starts fresh must not start where the source started."""
    return int(digest_of(["fresh", seed])[:8], 16)


def from_base(
    source: SequentialRecommender,
    config: LlmConfig | SasrecConfig,
    *,
    base_layers: int | None,
    base_blocks: Sequence[int],
    seed: int,
    source_seed: int,
    base_items: int,
) -> SequentialRecommender:
    """SLMRec's student: blocks of the body as it was BEFORE the source was trained, all else fresh.

    `base_blocks`: which of the `base_layers` blocks of that body (None: all that the pretrained one has).
    A body with a `backbone` is read again from it; a body built from sizes is built again with
    `source_seed`. A SASRec draws its items before its blocks, so it takes the `base_items` that the catalogue
    had then. Position embeddings inside a Hugging Face body belong to it and come along, as does its final
    norm.

    Starts fresh from `seed`: input and output projections, a SASRec's position table and final norm, and
    trained item vectors (also where `items_from` gave them a start). Frozen item vectors and prompts stay
    as they are.
    """
    build = partial(
        build_model,
        _of_layers(config, base_layers),
        n_items=source.n_items,
        max_length=source.max_length,
        item_vectors=frozen_vectors(source, config),
    )
    model = build(seed=seed)
    if isinstance(config, SasrecConfig) or config.backbone is None:
        n_items = base_items if isinstance(config, SasrecConfig) else source.n_items
        donor = build(seed=source_seed, n_items=n_items)
        ours, theirs = model.bodies()["user"], donor.bodies()["user"]
        assert isinstance(ours, nn.Module) and isinstance(theirs, nn.Module)
        ours.load_state_dict(theirs.state_dict())
    model.bodies()["user"].keep(base_blocks)
    return model


def anew(
    source: SequentialRecommender, config: LlmConfig | SasrecConfig, *, layers: int, seed: int
) -> SequentialRecommender:
    """The same shape with `layers` blocks; the source gives frozen item vectors and prompts only."""
    model = build_model(
        _of_layers(config, layers),
        n_items=source.n_items,
        max_length=source.max_length,
        seed=seed,
        item_vectors=frozen_vectors(source, config),
    )
    body = model.bodies()["user"]
    if isinstance(config, LlmConfig) and config.backbone is not None:  # its weights are pretrained
        assert isinstance(body, HuggingFaceBody)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            body.backbone = AutoModel.from_config(body.config)  # type: ignore[no-untyped-call]
        drop_word_embeddings(body.backbone)
    return model


def _of_layers(config: LlmConfig | SasrecConfig, layers: int | None) -> LlmConfig | SasrecConfig:
    """The config with other blocks; a body that was trained on in 4 or 8 bits (`load_in`) is built plain."""
    plain = {"load_in": None} if isinstance(config, LlmConfig) else {}
    return config.model_copy(update={"layers": layers, **plain})


def frozen_vectors(source: SequentialRecommender, config: LlmConfig | SasrecConfig) -> Tensor | None:
    """The source's item vectors where its config freezes them, else None."""
    if isinstance(config, LlmConfig) and config.item_vectors == "frozen":
        return source.item_table().detach().clone()
    return None
