"""The `model:` section of a recipe, one class per kind; builders in `build.py` turn it into plain
arguments.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from recommender.data.config import Section

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "gpt_neox",
)  # fmt: skip
"""Hugging Face decoder families that can be built from a config; each one has its test."""


class LoraSettings(Section):
    """Low-rank adapters (peft) on a frozen body; merged before pruning and export."""

    r: int = Field(16, ge=1, description="rank")
    alpha: int = Field(16, ge=1, description="scale numerator; the update is multiplied by alpha / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapter's input")
    targets: tuple[str, ...] = Field(
        ("gate_proj", "up_proj", "down_proj"), description="names of the linear layers (SLMRec: the MLP's)"
    )


class LlmConfig(Section):
    """Item vectors -> input projection -> Hugging Face decoder body -> output projection -> scores."""

    kind: Literal["llm"] = "llm"
    backbone: str | None = Field(
        None,
        description="model name or folder for AutoModel.from_pretrained; null builds a body from the "
        "sizes below with random weights",
    )
    family: Literal[FAMILIES] = Field("llama", description="decoder family of a body built from sizes")  # type: ignore[valid-type]
    layers: int | None = Field(None, ge=1, description="blocks; with a backbone: keep only the first ones")
    hidden: int = Field(64, ge=8, description="width of a body built from sizes")
    heads: int = Field(2, ge=1, description="attention heads of a body built from sizes")
    kv_heads: int | None = Field(None, ge=1, description="key/value heads; null: as many as heads")
    ffn: int | None = Field(None, ge=8, description="inner width of the feed-forward; null: 3 x hidden")
    item_dim: int = Field(64, ge=4, description="width D of the item vectors")
    item_vectors: Literal["trained", "frozen"] = Field(
        "trained", description="trained with the model, or frozen from `items_from`"
    )
    items_from: str | None = Field(
        None, description="name of a checkpoint (bound by an earlier stage) whose item table is taken over"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="on the projected inputs and on each block's update")
    lora: LoraSettings | None = Field(
        None, description="train adapters on a frozen body instead of all weights"
    )
    prefix: str = Field("", description="prompt before the items; needs a backbone with a tokenizer")
    suffix: str = Field("", description="prompt after the items; needs `positions: last` in training")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.backbone is None:
            kv_heads = self.kv_heads or self.heads
            if self.hidden % self.heads or self.heads % kv_heads:
                raise ValueError(
                    f"hidden {self.hidden}, heads {self.heads}, kv_heads {kv_heads} must divide one another"
                )
            if self.layers is None:
                raise ValueError("a body built from sizes needs `layers`, its number of blocks")
            if self.prefix or self.suffix:
                raise ValueError(
                    "a prompt needs a tokenizer, which only a `backbone` has: name one, or drop the prompt"
                )
        if self.item_vectors == "frozen" and self.items_from is None:
            raise ValueError(
                "frozen item vectors need `items_from`, the name of a checkpoint that they come from"
            )
        return self


class SasrecConfig(Section):
    """SASRec (Kang & McAuley 2018) with the pre-norm blocks and full softmax of the strong recipe."""

    kind: Literal["sasrec"] = "sasrec"
    layers: int = Field(2, ge=1, description="blocks")
    hidden: int = Field(64, ge=4, description="width; also the width of the item vectors")
    heads: int = Field(1, ge=1, description="attention heads")
    dropout: float = Field(0.3, ge=0, lt=1, description="on embeddings, attention and feed-forward")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        return self


class PopularityConfig(Section):
    """How often an item stands in the training part; nothing is trained."""

    kind: Literal["popularity"] = "popularity"


ModelConfig = Annotated[LlmConfig | SasrecConfig | PopularityConfig, Field(discriminator="kind")]


def backbone_folder(checkpoint: Path) -> Path:
    """Where a checkpoint keeps its Hugging Face body."""
    return checkpoint / "backbone"
