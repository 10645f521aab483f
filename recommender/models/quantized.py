"""A frozen body in 4 or 8 bits (bitsandbytes), to train adapters on; it is dequantized before it is saved.

bitsandbytes rewrites 4-bit weights on CPUs with avx512_bf16: the first evaluation packs them for a faster
kernel, and `state_dict()` unpacks them wrongly, so that the file AND the live model are another model from
then on, without a word (0.50; its issue 2078). Here the packing is switched off, which is exact and on small
bodies faster, and every quantized weight must be bit for bit what was loaded, after a first evaluation and
again before it is dequantized.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, BitsAndBytesConfig, PreTrainedModel

from recommender.errors import InputError, StageError

LoadIn = Literal["nf4", "int8"]
DIGESTS = "quantized_digests"
"""Attribute of a quantized backbone: {layer: digest of its weights as loaded}."""


def load_quantized(name: str, load_in: LoadIn) -> PreTrainedModel:
    """Load a body with its linear layers quantized: NF4 with double quantization (QLoRA, arXiv 2305.14314) or
    LLM.int8() (arXiv 2208.07339); all else fp32.

    Raises InputError without bitsandbytes and for bodies that cannot be quantized, StageError when an
    evaluation changes the weights; OSError and ValueError as `from_pretrained` does.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"load_in: {load_in} needs bitsandbytes, which is not installed",
            where="model.load_in",
            fix="pip install 'recpress[quantize]', or leave load_in out",
        )
    how = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=load_in == "nf4",
        load_in_8bit=load_in == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    backbone: PreTrainedModel = AutoModel.from_pretrained(
        name, dtype=torch.float32, quantization_config=how, device_map={"": "cpu"}
    )
    if backbone.config.model_type == "gpt2":
        raise InputError(
            "gpt2 keeps its weights transposed, and adapters find no linear layers in it",
            where="model.load_in",
            fix="leave load_in and lora out, or take another backbone",
        )
    never_pack(backbone)
    loaded = dict(digests(backbone))
    if not loaded:  # there would be nothing for the guard to guard
        raise InputError(
            "nothing in it was quantized: it has no linear layers that bitsandbytes knows",
            where="model.load_in",
            fix="leave load_in out, or take another backbone",
        )
    setattr(backbone, DIGESTS, loaded)
    _evaluate_once(backbone)
    check_intact(backbone)
    return backbone


def is_quantized(backbone: nn.Module) -> bool:
    """Whether a body came from `load_quantized` and has not been dequantized."""
    return hasattr(backbone, DIGESTS)


def never_pack(backbone: nn.Module) -> None:
    """Keep bitsandbytes from rewriting 4-bit weights for its CPU kernel."""
    module: Any
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_intact(backbone: nn.Module) -> None:
    """Raise StageError unless every quantized weight is what was loaded."""
    loaded: dict[str, str] = getattr(backbone, DIGESTS)
    changed = [name for name, digest in digests(backbone) if digest != loaded[name]]
    if changed:
        raise StageError(
            f"bitsandbytes has changed {len(changed)} of {len(loaded)} quantized layers, which were frozen: "
            f"{', '.join(changed[:3])}",
            fix="use another version of bitsandbytes, or train without load_in: what would be saved is wrong",
        )


def dequantize(backbone: PreTrainedModel) -> None:
    """Turn quantized layers into plain fp32 ones of the same values. Raises StageError as `check_intact`."""
    check_intact(backbone)
    backbone.dequantize(dtype=torch.float32)  # type: ignore[no-untyped-call]
    for name in (DIGESTS, "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(backbone, name):
            delattr(backbone, name)


def digests(backbone: nn.Module) -> Iterator[tuple[str, str]]:
    """(layer, SHA-256 of its quantized weight with all that gives it its values), on any device."""
    for name, module in backbone.named_modules():
        weight = module._parameters.get("weight")  # its own: peft's wrappers have a property of that name
        if type(weight).__name__ in ("Params4bit", "Int8Params"):
            digest = hashlib.sha256()
            for part in _parts(module, weight):
                values = part.detach().cpu().contiguous()
                digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
                digest.update(values.view(torch.uint8).numpy().tobytes())
            yield name.removesuffix(".base_layer"), digest.hexdigest()  # as peft calls it


def _parts(module: Any, weight: Any) -> list[Tensor]:
    """The tensors behind a quantized weight, none of them 0-dimensional."""
    if type(weight).__name__ == "Int8Params":
        scale = module.state.SCB if module.state.SCB is not None else weight.SCB
        parts = [weight.data, scale]
    else:
        state = weight.quant_state
        parts = [weight.data, state.absmax, state.code]
        if state.nested:
            parts += [state.offset, state.state2.absmax, state.state2.code]
    return [part.reshape(part.shape or (1,)) for part in parts]


def _evaluate_once(backbone: PreTrainedModel) -> None:
    """One evaluation and one look at the state, after which the weights must be what they were."""
    training = backbone.training
    embeds = torch.zeros(1, 2, backbone.config.hidden_size)
    nn.Module.eval(backbone)  # transformers types its own as it likes
    try:
        with torch.inference_mode():
            backbone(inputs_embeds=embeds, use_cache=False)
        backbone.state_dict()
    finally:
        backbone.train(training)
