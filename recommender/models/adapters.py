"""LoRA as a way of training: adapters go in before, are merged after, and no saved model knows of them."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from recommender.errors import InputError
from recommender.models.config import LoraSettings
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.quantized import dequantize, is_quantized
from recommender.models.zeros import HeldZeros


def add_adapters(
    body: HuggingFaceBody, settings: LoraSettings, *, seed: int, held: HeldZeros | None = None
) -> None:
    """Freeze the body and put trainable low-rank adapters into its linear layers (arXiv 2106.09685).

    Their weights are drawn from `seed`; the global random state is left as it was. Where zeros are `held`,
    an adapter adds nothing in the mean over its dropout, and nothing at all without: what is trained is what
    the merge will leave. Raises InputError when a target names no layer of the body.
    """
    names = {
        name.rpartition(".")[2]
        for name, module in body.backbone.named_modules()
        if isinstance(module, nn.Linear)
    }
    unknown = sorted(set(settings.targets) - names)
    if unknown:
        raise InputError(
            f"no linear layer named {', '.join(unknown)} (the body has: {', '.join(sorted(names))})",
            where="model.lora.targets",
        )
    body.requires_grad_(False)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, body.backbone)
    for module in body.backbone.modules():
        if held is None or not isinstance(module, LoraLayer):
            continue
        if held.of(module.get_base_layer()) is not None:
            module.register_forward_hook(_without_filling(held))


def _without_filling(held: HeldZeros) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that takes what an adapter adds at held zeros out of a layer's output.

    Dropout on the adapter's input is not repeated here; in the mean over its draws that is the same.
    """

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        zero = held.of(module.get_base_layer())
        assert zero is not None
        return output - functional.linear(args[0], _update(module).masked_fill(~zero, 0))

    return hook


def _update(module: Any) -> Tensor:
    """What the one adapter of a layer adds to its weight, [out, in]."""
    (adapter,) = module.active_adapters
    update: Tensor = module.get_delta_weight(adapter)
    return update


def merge_adapters(body: HuggingFaceBody, *, held: HeldZeros | None = None) -> int:
    """Fold every adapter into its layer, dequantize and thaw the body; returns how many there were.

    A quantized layer is dequantized first and gets the update in fp32: merging into 4 bits would round it.
    Zeros that are `held` stay zero. Raises StageError when quantized weights are not what was loaded.
    """
    backbone = body.backbone
    found = [(name, module) for name, module in backbone.named_modules() if isinstance(module, LoraLayer)]
    updates: dict[str, Tensor] = {}
    module: Any  # a layer of peft, which states no types
    for name, module in found:
        updates[name] = _update(module).detach()
        owner, _, attribute = name.rpartition(".")
        setattr(backbone.get_submodule(owner), attribute, module.get_base_layer())
    if found:
        del backbone.peft_config  # inject_adapter_in_model leaves it, save_pretrained would read it
    if is_quantized(backbone):
        dequantize(backbone)
    with torch.no_grad():
        for name, update in updates.items():
            backbone.get_parameter(f"{name}.weight").add_(update)
    if held is not None:
        held.mask_weights()
    if found:
        body.requires_grad_(True)
        backbone.get_input_embeddings().requires_grad_(False)
    return len(found)
