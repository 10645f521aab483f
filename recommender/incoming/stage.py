"""Stage `import`: a model or item vectors from elsewhere, made into a checkpoint of ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from recommender.models.config import ItemVectorsConfig, LlmConfig, LoraSettings, ModelConfig, Norm
from recommender.stage import Bound, Context, Outputs, Shape, StageConfig

if TYPE_CHECKING:
    from recommender.incoming.items import Alignment
    from recommender.models.interface import SequentialRecommender

Format = Literal["hf-decoder", "sasrec", "item-vectors"]

BELONGS: Mapping[str, tuple[Format, ...]] = {
    "vectors": ("hf-decoder",),
    "projections": ("hf-decoder",),
    "item_vectors": ("hf-decoder",),
    "prefix": ("hf-decoder",),
    "suffix": ("hf-decoder",),
    "fixed_slots": ("hf-decoder",),
    "lora": ("hf-decoder",),
    "tensor": ("hf-decoder", "item-vectors"),
    "heads": ("sasrec",),
    "norm": ("sasrec",),
    "padding": ("sasrec",),
    "dropout": ("hf-decoder", "sasrec"),
    "pool": ("item-vectors",),
    "unit": ("item-vectors",),
}
"""The formats that an option belongs to; options that are not named here belong to all."""


class ImportConfig(StageConfig):
    """Bring in what was trained elsewhere.

    ```yaml
    - {stage: import, as: teacher, format: sasrec, path: SASRec.safetensors, items: item_map.csv, heads: 1}
    ```
    """

    stage: Literal["import"] = "import"
    as_: str = Field(alias="as", description="name that later stages use")
    format: Format = Field(
        description="hf-decoder: a Hugging Face folder; sasrec: the state dict of pmixer/SASRec.pytorch; "
        "item-vectors: a table of item vectors"
    )
    path: Path = Field(description="the folder of the decoder, or the file; weights are safetensors")
    items: Path | None = Field(
        None,
        description="item map: index (the foreign row) and item_id (your id); tables may hold item_id",
    )
    missing: Literal["error", "mean", "zero", "fresh"] = Field(
        "error", description="vector of an item that the foreign model does not know"
    )
    expect_ndcg: float | None = Field(
        None, ge=0, le=1, description="refuse the import when validation NDCG@10 is below this"
    )
    validation_users: int | None = Field(None, ge=1, description="rank a sample of users; null: all")
    vectors: Path | None = Field(
        None, description="item vectors of the decoder: .safetensors, .npy or .parquet"
    )
    tensor: str | None = Field(
        None, description="which tensor of a safetensors file is the table of item vectors"
    )
    projections: Path | Literal["identity"] | None = Field(
        None,
        description="safetensors with input_proj.weight, input_proj.bias, score.weight; identity: the item "
        "vectors are the decoder's own embeddings; null: fresh ones, to be trained",
    )
    item_vectors: Literal["trained", "frozen"] = Field(
        "trained", description="whether later training may change the decoder's item vectors"
    )
    prefix: str = Field("", description="prompt before the items")
    suffix: str = Field("", description="prompt after the items")
    fixed_slots: bool = Field(False, description="count padding in position numbers, as E4SRec and SLMRec do")
    lora: LoraSettings | None = Field(
        None, description="later training changes adapters on the frozen body instead of all weights"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="in later training")
    heads: int = Field(1, ge=1, description="attention heads, which no state dict tells")
    norm: Norm = Field(
        "query",
        description="query: the versions until spring 2025; since then pre (--norm_first) and post (without)",
    )
    padding: Literal["auto", "zeroed", "attended"] = Field(
        "auto",
        description="zeroed: the versions until 2023; attended: later ones; auto: told by the first position",
    )
    pool: Literal["mean", "last"] = Field(
        "mean", description="user vector: the mean over the history, or its last item's vector"
    )
    unit: bool = Field(False, description="scale every vector to length 1, so that scores are cosines")

    @property
    def produces(self) -> str:
        """The checkpoint."""
        return self.as_

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        fields = type(self).model_fields
        foreign = [
            name
            for name, formats in BELONGS.items()
            if self.format not in formats and getattr(self, name) != fields[name].default
        ]
        if foreign:
            belongs = " and ".join(BELONGS[foreign[0]])
            raise ValueError(f"{foreign[0]} belongs to format {belongs}, not to {self.format}")
        if self.format == "hf-decoder" and self.vectors is None:
            raise ValueError("hf-decoder needs `vectors`, the file of its item vectors")
        if self.format == "sasrec" and self.items is None:
            raise ValueError("sasrec needs `items`, the map from its item numbers to your ids")
        return self

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """What can be told without reading the files."""
        model: ModelConfig | None = None
        if self.format == "item-vectors":
            model = ItemVectorsConfig(pool=self.pool)
        elif self.format == "hf-decoder":
            model = self.llm()
        return Shape("checkpoint", model=model)

    def llm(self) -> LlmConfig:
        """The model around an imported decoder; what asks for its untrained body reads `path` again."""
        return LlmConfig(
            backbone=str(self.path),
            item_vectors=self.item_vectors,
            items_from=self.as_ if self.item_vectors == "frozen" else None,
            prefix=self.prefix,
            suffix=self.suffix,
            fixed_slots=self.fixed_slots,
            dropout=self.dropout,
            lora=self.lora,
        )


class Imported(NamedTuple):
    """What every format gives."""

    model: "SequentialRecommender"
    config: ModelConfig
    items: "Alignment"
    doubt: str  # what is probably wrong when it recommends no better than popularity


def run(config: ImportConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Read, match items, rank validation users, and write `checkpoint/`.

    Metrics: how many items were matched, missing, dropped; HR@10, NDCG@10, MRR on validation, NDCG@10 of
    popularity, and `warning` where the model is not above it. Raises InputError for what does not fit,
    GateError when NDCG@10 is below `expect_ndcg`; in both cases nothing is written.
    """
    from recommender.checkpoint import save_checkpoint
    from recommender.incoming.check import check_quality, note_window

    model, model_config, items, doubt = READERS[config.format](config, context)
    facts = items.facts()
    context.progress("note", {key.replace("_", " "): f"{value:,}" for key, value in facts.items()})
    note_window(model, context)
    quality = check_quality(
        model, context, users=config.validation_users, expected=config.expect_ndcg, doubt=doubt
    )
    about = {"stage": "import", "name": config.as_, "imported": config.format, "seed": context.seed}
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=model_config,
        split=context.evaluation.split,
        about={**about, "best_ndcg": quality["ndcg@10"]},
    )
    return Outputs({"format": config.format, "max_length": model.max_length, **facts, **quality})


IDS = "the ids of the items probably do not belong to its rows"


def _decoder(config: ImportConfig, context: Context) -> Imported:
    from recommender.incoming.check import with_sizes
    from recommender.incoming.decoder import import_decoder

    assert config.vectors is not None  # the config has checked it
    model, items = import_decoder(
        config.llm(),
        context.prepared,
        vectors=config.vectors,
        tensor=config.tensor,
        items=config.items,
        projections=config.projections,
        max_length=context.data.max_length,
        missing=config.missing,
        seed=context.seed,
    )
    hidden, width = model.input_projection.weight.shape
    sizes = {"layers": len(model.body.blocks), "hidden": hidden, "item_dim": width}
    doubt = f"{IDS}, or prefix, suffix, fixed_slots differ from its own"
    if config.projections is None:
        doubt = "its projections are fresh: train it (distill with method: none), or give `projections`"
        context.progress("note", {"text": doubt})
    model_config = with_sizes(LlmConfig, {**config.llm().model_dump(), **sizes}, config.path)
    return Imported(model, model_config, items, doubt)


def _sasrec(config: ImportConfig, context: Context) -> Imported:
    from recommender.incoming.sasrec import import_sasrec

    assert config.items is not None  # the config has checked it
    model, model_config, items = import_sasrec(
        config.path,
        config.items,
        context.prepared,
        max_length=context.data.max_length,
        heads=config.heads,
        norm=config.norm,
        padding=config.padding,
        dropout=config.dropout,
        missing=config.missing,
        seed=context.seed,
    )
    form = f"heads: {config.heads}, norm: {model_config.norm}, padding: {model_config.padding}"
    context.progress("note", {"text": f"read as {form}"})
    return Imported(model, model_config, items, f"{IDS}, or it is of another form than {form}")


def _table(config: ImportConfig, context: Context) -> Imported:
    from recommender.incoming.items import gather
    from recommender.incoming.vectors import match_vectors, read_vectors
    from recommender.models.item_vectors import ItemVectors

    found = read_vectors(config.path, config.tensor)
    items = match_vectors(found, config.path, config.items, context.prepared, missing=config.missing)
    table = gather(found.table, items, missing=config.missing, seed=context.seed)
    if config.unit:
        table = table / table.norm(dim=1, keepdim=True).clamp(min=1e-12)
    model = ItemVectors(table, max_length=context.data.max_length, pool=config.pool)
    doubt = f"{IDS}, or the vectors alone do not tell what comes next"
    return Imported(model.eval(), ItemVectorsConfig(pool=config.pool), items, doubt)


READERS: Mapping[Format, Callable[[ImportConfig, Context], Imported]] = {
    "hf-decoder": _decoder,
    "sasrec": _sasrec,
    "item-vectors": _table,
}
