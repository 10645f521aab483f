"""Stage `train`: a model from a config and a data set to a checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from recommender.models.config import LlmConfig, ModelConfig, PopularityConfig
from recommender.stage import Bound, Context, Outputs, Shape, StageConfig
from recommender.training.config import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from recommender.models.interface import SequentialRecommender


class TrainConfig(TrainSettings, StageConfig):
    """Train a recommender from scratch, or a pre-trained body on a new catalogue."""

    distributed: ClassVar[bool] = True

    stage: Literal["train"]
    as_: str = Field(alias="as", description="name that later stages use")
    model: ModelConfig = Field(description="what to train")

    @property
    def consumes(self) -> tuple[str, ...]:
        """The checkpoint that item vectors are taken from, if any."""
        source = self.model.items_from if isinstance(self.model, LlmConfig) else None
        return (source,) if source else ()

    @property
    def produces(self) -> str:
        """The trained checkpoint."""
        return self.as_

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A prompt suffix that only the last position reads; item vectors from a model that has none."""
        if not isinstance(self.model, LlmConfig):
            return []
        found = [("positions", SUFFIX)] if self.model.suffix and self.positions != "last" else []
        source = known.get(self.model.items_from or "")
        if source is not None and isinstance(source.model, PopularityConfig):
            found.append(
                ("model.items_from", f"{self.model.items_from!r} is popularity, which has no item vectors")
            )
        return found

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """What the model's config says; a backbone's own number of blocks is seen when it is loaded."""
        layers = None if isinstance(self.model, PopularityConfig) else self.model.layers
        return Shape("checkpoint", layers=layers, model=self.model)


SUFFIX = "with a prompt suffix only the last position reads the whole prompt: set positions to last"


def run(config: TrainConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Build, train, and write `checkpoint/` with the best weights by validation NDCG@10."""
    import torch

    from recommender.checkpoint import save_checkpoint
    from recommender.models.build import build_model
    from recommender.training.validation import validation_quality

    counts = None
    if isinstance(config.model, PopularityConfig):
        counts = torch.from_numpy(context.prepared.train_counts(context.split))
    model = build_model(
        config.model,
        n_items=context.prepared.n_items,
        max_length=context.data.max_length,
        seed=context.seed,
        item_vectors=_item_vectors(config, inputs, context),
        counts=counts,
    )
    if isinstance(config.model, PopularityConfig):
        metrics: dict[str, object] = {"best_ndcg": validation_quality(model, context)["ndcg@10"]}
    else:
        metrics = _fit(model, config, context)
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=config.model,
        about={"stage": "train", "name": config.as_, "seed": context.seed, "best_ndcg": metrics["best_ndcg"]},
    )
    return Outputs(metrics)


def _fit(model: "SequentialRecommender", config: TrainConfig, context: Context) -> dict[str, object]:
    from recommender.models.adapters import add_adapters, merge_adapters
    from recommender.models.hf_body import HuggingFaceBody
    from recommender.training.loop import fit
    from recommender.training.objective import NextItem

    lora = config.model.lora if isinstance(config.model, LlmConfig) else None
    body = model.bodies().get("user")
    if lora is not None and isinstance(body, HuggingFaceBody):
        add_adapters(body, lora)
    objective = NextItem(model, loss=config.loss, negatives=config.negatives, gbce_t=config.gbce_t)
    result = fit(objective, model, config, context)
    if isinstance(body, HuggingFaceBody):
        merge_adapters(body)
    return result.as_metrics()


def _item_vectors(config: TrainConfig, inputs: Mapping[str, Bound], context: Context) -> "Tensor | None":
    """The item table of the checkpoint that the model's item vectors come from."""
    if not isinstance(config.model, LlmConfig) or config.model.items_from is None:
        return None
    from recommender.checkpoint import load_checkpoint

    source = load_checkpoint(inputs[config.model.items_from].path, prepared=context.prepared)
    return source.item_table().detach().clone()
