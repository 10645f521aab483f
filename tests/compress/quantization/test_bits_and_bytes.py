"""The values are those that bitsandbytes' own quantized layers compute with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from compress.quantization.bits_and_bytes import as_llm_int8, as_nf4
from recommender.errors import InputError
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.linears import body_linears
from recommender.models.quantized import dequantize, load_quantized

pytest.importorskip("bitsandbytes", reason="needs recpress[quantize]")
ROUND = {"nf4": as_nf4, "int8": as_llm_int8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 72, "intermediate_size": 128, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=8, initializer_range=0.3)
    LlamaModel(config).save_pretrained(path := tmp_path_factory.mktemp("decoder"))
    return path


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_they_equal_the_weights_of_the_live_quantized_body(load_in: Any, folder: Path) -> None:
    live = load_quantized(str(folder), load_in)
    dequantize(live)
    theirs = body_linears(HuggingFaceBody(live))
    plain = body_linears(HuggingFaceBody(LlamaModel.from_pretrained(folder, dtype=torch.float32)))
    assert len(theirs) == len(plain) == 14
    for name, linear in plain.items():
        made = ROUND[load_in](linear.matrix())
        assert torch.allclose(made, theirs[name].matrix(), rtol=2e-7, atol=0)
        assert not torch.equal(made, linear.matrix())
        if load_in == "nf4":
            assert torch.equal(made, theirs[name].matrix())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_rounding_again_moves_them_by_next_to_nothing(kind: str) -> None:
    once = ROUND[kind](torch.randn(24, 64, generator=torch.Generator().manual_seed(0)))
    again = ROUND[kind](once)
    moved = (again - once).abs().max() / once.abs().max()
    assert moved < (1e-2 if kind == "nf4" else 1e-3)


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(InputError, match="beyond the range of float16"):
        as_llm_int8(torch.full((2, 64), 1e6))
