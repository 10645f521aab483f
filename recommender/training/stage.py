"""Stage `train`: a model from a config and a data set to a checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from recommender.errors import InputError
from recommender.models.config import BODILESS, ItemVectorsConfig, LlmConfig, ModelConfig, PopularityConfig
from recommender.quantization_scheme import LEAVES_GRID
from recommender.sparsity import Sparsity, noted
from recommender.stage import Bound, Context, Outputs, Shape, StageConfig
from recommender.training.config import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from recommender.models.interface import SequentialRecommender


class TrainConfig(TrainSettings, StageConfig):
    """Train a recommender from scratch, a pre-trained body on a new catalogue, or a checkpoint further."""

    distributed: ClassVar[bool] = True

    stage: Literal["train"]
    as_: str = Field(alias="as", description="name that later stages use")
    model: ModelConfig | None = Field(
        None, description="what to train; left out with start_from, whose model goes on"
    )
    start_from: str | None = Field(
        None,
        description="name of a checkpoint whose weights are the start (the optimizer is fresh); one of an "
        "older catalogue goes through the stage adapt first",
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.start_from is None):
            raise ValueError(
                "give either `model`, what to train, or `start_from`, a checkpoint to go on with"
            )
        return self

    @property
    def consumes(self) -> tuple[str, ...]:
        """The checkpoint that weights or item vectors are taken from, if any."""
        items = self.model.items_from if isinstance(self.model, LlmConfig) else None
        source = self.start_from or items
        return (source,) if source else ()

    @property
    def produces(self) -> str:
        """The trained checkpoint."""
        return self.as_

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A prompt suffix that only the last position reads; a source that has nothing to give."""
        source = known[self.consumes[0]].model if self.consumes and self.consumes[0] in known else None
        model = source if self.model is None else self.model
        suffix = isinstance(model, LlmConfig) and model.suffix
        found = [("positions", SUFFIX)] if suffix and self.positions != "last" else []
        if isinstance(self.model, ItemVectorsConfig):
            found.append(("model.kind", TABLE))
        if self.start_from is not None and isinstance(source, BODILESS):
            found.append(("start_from", f"{self.start_from!r} {NOTHING}"))
        start = known.get(self.start_from or "")
        if start is not None and start.quantized is not None:
            found.append(("start_from", LEAVES_GRID.format(name=self.start_from, scheme=start.quantized)))
        if self.start_from is None and isinstance(source, PopularityConfig):
            found.append(
                ("model.items_from", f"{self.consumes[0]!r} is popularity, which has no item vectors")
            )
        return found

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """What the model's config says; a backbone's own number of blocks is seen when it is loaded."""
        if self.model is None:
            return known.get(self.start_from or "", Shape("checkpoint"))
        layers = None if isinstance(self.model, BODILESS) else self.model.layers
        return Shape("checkpoint", layers=layers, model=self.model)


SUFFIX = "with a prompt suffix only the last position reads the whole prompt: set positions to last"
TABLE = "a table of item vectors is not trained: bring it in with the stage import"
NOTHING = "is popularity or an imported table: there are no weights to train further"


def run(config: TrainConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Build or take over, train, and write `checkpoint/` with the best weights by validation NDCG@10.

    Weights that were taken over are validated first, and kept unless an epoch is better. Raises InputError
    for a checkpoint of another catalogue.
    """
    from recommender.checkpoint import save_checkpoint
    from recommender.training.validation import validation_quality

    model, model_config, about = _start(config, inputs, context)
    if isinstance(model_config, PopularityConfig):
        metrics: dict[str, object] = {"best_ndcg": validation_quality(model, context)["ndcg@10"]}
    else:
        metrics = _fit(model, model_config, config, context, noted(about, _source(config)))
    about |= {"stage": "train", "name": config.as_, "best_ndcg": metrics["best_ndcg"]}
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=model_config,
        split=context.evaluation.split,
        about=about,
    )
    return Outputs(metrics)


def _start(
    config: TrainConfig, inputs: Mapping[str, Bound], context: Context
) -> tuple["SequentialRecommender", ModelConfig, dict[str, Any]]:
    """The model to train, its config, and what is known of where it comes from."""
    import torch

    from recommender.checkpoint import load_checkpoint, read_info
    from recommender.models.build import build_model

    if config.model is None:
        assert config.start_from is not None  # the config has checked it
        folder = inputs[config.start_from].path
        info = read_info(folder)
        if isinstance(info.model_config, BODILESS):
            raise InputError(f"{config.start_from!r} {NOTHING}", where="train.start_from")
        if info.quantized is not None:
            wrong = LEAVES_GRID.format(name=config.start_from, scheme=info.quantized)
            raise InputError(wrong, where="train.start_from")
        model = load_checkpoint(folder, prepared=context.prepared)
        return model, info.model_config, {**info.about, "start_from": config.start_from}
    counts = None
    if isinstance(config.model, PopularityConfig):
        counts = torch.from_numpy(context.prepared.train_counts(context.split))
    model = build_model(
        config.model,
        n_items=context.prepared.n_items,
        max_length=context.data.max_length,
        seed=context.seed,
        item_vectors=_item_vectors(config.model, inputs, context),
        counts=counts,
    )
    return model, config.model, {"seed": context.seed}


def _source(config: TrainConfig) -> str:
    """Of the weights that were taken over, for messages."""
    return f"the checkpoint {config.start_from}"


def _fit(
    model: "SequentialRecommender",
    model_config: ModelConfig,
    config: TrainConfig,
    context: Context,
    sparsity: Sparsity | None,
) -> dict[str, object]:
    """Train; where the start is sparse, its zeros are held."""
    from recommender.models.adapters import add_adapters, merge_adapters
    from recommender.models.hf_body import HuggingFaceBody
    from recommender.models.quantized import is_quantized
    from recommender.models.zeros import held_zeros
    from recommender.training.loop import fit
    from recommender.training.objective import NextItem
    from recommender.training.validation import validation_quality

    lora = model_config.lora if isinstance(model_config, LlmConfig) else None
    body = model.bodies().get("user")
    held = held_zeros(model, sparsity, _source(config))
    if lora is not None and isinstance(body, HuggingFaceBody):
        add_adapters(body, lora, seed=context.seed, held=held)
    objective = NextItem(model, loss=config.loss, negatives=config.negatives, gbce_t=config.gbce_t)
    result = fit(objective, model, config, context, keep_start=config.start_from is not None, held=held)
    metrics = result.as_metrics()
    if isinstance(body, HuggingFaceBody):
        quantized = is_quantized(body.backbone)
        merge_adapters(body, held=held)
        if quantized:  # what is saved is not quite what was validated
            saved = validation_quality(model.to(context.device), context, config.validation_users)
            metrics |= {"quantized_ndcg": result.best_ndcg, "best_ndcg": saved["ndcg@10"]}
    return metrics


def _item_vectors(model: ModelConfig, inputs: Mapping[str, Bound], context: Context) -> "Tensor | None":
    """The item table of the checkpoint that the model's item vectors come from."""
    if not isinstance(model, LlmConfig) or model.items_from is None:
        return None
    from recommender.checkpoint import load_checkpoint

    source = load_checkpoint(inputs[model.items_from].path, prepared=context.prepared)
    return source.item_table().detach().clone()
