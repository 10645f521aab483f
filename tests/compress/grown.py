"""Trained models with blocks that do nothing: the one case where the right blocks to remove are known."""

from collections.abc import Sequence

import torch
from torch import nn

from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.interface import SequentialRecommender
from recommender.stage import Bound

from .conftest import bound

SILENT = ("o_proj.", "down_proj.", "out.", "down.")  # the last layer of attention and feed-forward


def with_identities(source: Bound, at: Sequence[int]) -> SequentialRecommender:
    """The checkpoint's model with identity blocks so inserted that they end up at the places `at`."""
    info, old = read_info(source.path), load_checkpoint(source.path)
    blocks = list(old.bodies()["user"].blocks)
    config = info.model_config.model_copy(update={"layers": len(blocks) + len(at)})
    model = build_model(config, n_items=info.n_items, max_length=info.max_length, seed=5)
    outside = {name: value for name, value in old.state_dict().items() if not is_block(name)}
    model.load_state_dict(outside, strict=False)
    for place, block in enumerate(model.bodies()["user"].blocks):
        if place in at:
            silence(block)
        else:
            block.load_state_dict(blocks.pop(0).state_dict())
    return model.eval()


def is_block(name: str) -> bool:
    return ".layers." in name or ".blocks." in name


def silence(block: nn.Module) -> None:
    """Make a pre-norm block the identity: its updates are multiplied by zero."""
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if any(part in name for part in SILENT):
                parameter.zero_()


def saved_as(name: str, model: SequentialRecommender, source: Bound, prepared: Prepared) -> Bound:
    """Save a changed model beside the checkpoint it came from."""
    config = read_info(source.path).model_config
    layers = len(model.bodies()["user"].blocks)
    folder = source.stage_folder.parent / name
    save_checkpoint(
        model,
        folder / "checkpoint",
        prepared=prepared,
        model_config=config.model_copy(update={"layers": layers}),
        about={"seed": 1},
    )
    return bound(name, folder)


def with_outliers(source: Bound, prepared: Prepared, factor: float = 40.0) -> Bound:
    """The checkpoint's Llama with a channel of each norm scaled down and its readers' column scaled up.

    The function is the same, but each row of these matrices now has one entry that sets the scale of all.
    """
    model = load_checkpoint(source.path)
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    with torch.no_grad():
        for block in model.bodies()["user"].blocks:
            for norm, matrices in readers.items():
                block.get_parameter(f"{norm}.weight")[3] /= factor
                for matrix in matrices:
                    block.get_parameter(f"{matrix}.weight")[:, 3] *= factor
    return saved_as("outliers", model, source, prepared)


def with_one_outlier(source: Bound, prepared: Prepared, block: int, factor: float = 60.0) -> Bound:
    """The checkpoint's Llama with a neuron of one block scaled down and its column of `down_proj` scaled up.

    The function is the same, but each row of this one matrix now has an entry that sets the scale of all.
    """
    model = load_checkpoint(source.path)
    changed = model.bodies()["user"].blocks[block]
    with torch.no_grad():
        changed.get_parameter("mlp.up_proj.weight")[3] /= factor
        changed.get_parameter("mlp.down_proj.weight")[:, 3] *= factor
    return saved_as("outlier", model, source, prepared)
