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

HEADS_FILL_HIDDEN = ("gpt2", "opt", "gpt_neox")
"""Families whose heads together are as wide as the stream: hidden = heads x head_dim."""
HEADS_DIVIDE_HIDDEN = ("llama", "gemma2", "gemma3_text")
"""Families with a head_dim of their own that insist all the same on a hidden size that heads divide."""


def heads_problem(family: str, *, hidden: int, heads: int, head_dim: int) -> str | None:
    """What a family finds wrong with heads of a width of their own, or None."""
    if family in HEADS_FILL_HIDDEN and hidden != heads * head_dim:
        return (
            f"in {family} all heads together are as wide as hidden, but {heads} heads x {head_dim} are not "
            f"{hidden}"
        )
    if family in HEADS_DIVIDE_HIDDEN and hidden % heads:
        return f"{family} wants a hidden size that its heads divide, and {heads} does not divide {hidden}"
    return None


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
    head_dim: int | None = Field(
        None, ge=1, description="width of a head of a body built from sizes; null: hidden / heads"
    )
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
    load_in: Literal["nf4", "int8"] | None = Field(
        None,
        description="hold the frozen backbone in 4 or 8 bits while its adapters are trained (QLoRA); what is "
        "saved is plain. Needs `recpress[quantize]`",
    )
    prefix: str = Field("", description="prompt before the items; needs a backbone with a tokenizer")
    suffix: str = Field("", description="prompt after the items; needs `positions: last` in training")
    fixed_slots: bool = Field(
        False,
        description="count padding in position numbers, as E4SRec and SLMRec do; matters with a prefix or "
        "with absolute positions",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.backbone is None:
            kv_heads = self.kv_heads or self.heads
            if (self.head_dim is None and self.hidden % self.heads) or self.heads % kv_heads:
                raise ValueError(
                    f"hidden {self.hidden}, heads {self.heads}, kv_heads {kv_heads} must divide one another"
                )
            sizes = {"hidden": self.hidden, "heads": self.heads, "head_dim": self.head_size}
            if wrong := heads_problem(self.family, **sizes):
                raise ValueError(wrong)
            if self.layers is None:
                raise ValueError("a body built from sizes needs `layers`, its number of blocks")
            if self.prefix or self.suffix:
                raise ValueError(
                    "a prompt needs a tokenizer, which only a `backbone` has: name one, or drop the prompt"
                )
        if self.load_in is not None and (self.backbone is None or self.lora is None):
            raise ValueError(
                f"load_in: {self.load_in} needs a `backbone` to load and `lora`: weights in 4 or 8 bits "
                "cannot be trained themselves, and there is no sense in quantizing random ones"
            )
        if self.item_vectors == "frozen" and self.items_from is None:
            raise ValueError(
                "frozen item vectors need `items_from`, the name of a checkpoint that they come from"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of a head of a body built from sizes."""
        return self.head_dim or self.hidden // self.heads


Norm = Literal["pre", "query", "post"]
Padding = Literal["masked", "zeroed", "attended"]


class SasrecConfig(Section):
    """SASRec (Kang & McAuley 2018) with the pre-norm blocks and full softmax of the strong recipe.

    The other forms of `norm` and `padding` are those of published code, so that its weights can be imported.
    """

    kind: Literal["sasrec"] = "sasrec"
    layers: int = Field(2, ge=1, description="blocks")
    hidden: int = Field(64, ge=4, description="width; also the width of the item vectors")
    heads: int = Field(1, ge=1, description="attention heads")
    dropout: float = Field(0.3, ge=0, lt=1, description="on embeddings, attention and feed-forward")
    norm: Norm = Field(
        "pre",
        description="where the norms of a block stand: before both updates; on the query alone, with the "
        "residual on the normed query (the official code); after both updates",
    )
    padding: Padding = Field(
        "masked",
        description="what a history shorter than max_length sees in front of itself: nothing; zeros; or a "
        "padding vector (the last two: as the public implementations do)",
    )
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the norms")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        return self


class PopularityConfig(Section):
    """How often an item stands in the training part; nothing is trained."""

    kind: Literal["popularity"] = "popularity"


class ItemVectorsConfig(Section):
    """A table of item vectors that the stage `import` brought in; a history is the mean of its vectors."""

    kind: Literal["item-vectors"] = "item-vectors"
    pool: Literal["mean", "last"] = Field(
        "mean", description="user vector: the mean over the history, or its last item's vector"
    )


ModelConfig = Annotated[
    LlmConfig | SasrecConfig | PopularityConfig | ItemVectorsConfig, Field(discriminator="kind")
]

BODILESS = (PopularityConfig, ItemVectorsConfig)
"""Models without blocks: nothing to train, prune or distil."""


def backbone_folder(checkpoint: Path) -> Path:
    """Where a checkpoint keeps its Hugging Face body."""
    return checkpoint / "backbone"
