"""A body cut to a depth and trained again; what is finished outlives a kill."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate.utils import broadcast_object_list

from compress.initial import pruned
from compress.prune_depth import Importance
from compress.starts import Init
from recommender.checkpoint import CheckpointInfo, body_parameters, load_checkpoint
from recommender.files import read_json, write_json
from recommender.models.adapters import add_adapters, merge_adapters
from recommender.models.config import LlmConfig
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import SequentialRecommender
from recommender.models.zeros import HeldZeros, held_zeros
from recommender.profile import Depth, DepthProfile
from recommender.sparsity import cut, noted
from recommender.stage import Context
from recommender.training.config import TrainSettings
from recommender.training.loop import FitResult, fit
from recommender.training.objective import NextItem
from recommender.training.validation import validation_quality


def retrained(
    source: Path,
    info: CheckpointInfo,
    kept: Sequence[int],
    *,
    order: Importance,
    init: Init,
    settings: TrainSettings,
    context: Context,
) -> tuple[Depth, dict[str, Any]]:
    """Cut the checkpoint to the blocks `kept`, train, measure on the validation part; the model is let go.

    Returns the depth and the metrics of the training. The training has a scratch folder of its own, and its
    end is noted there: a run that was killed goes on within the depth that it was at.
    """
    name = f"depth-{len(kept)}"
    record, scratch = context.scratch / f"{name}.json", context.scratch / name
    text = f"{len(kept)} of {info.blocks['user']} blocks ({', '.join(map(str, kept))})"
    if record.is_file():
        context.progress("note", {"text": f"{text}: trained before the interruption"})
        found = read_json(record)
        return Depth.model_validate(found["depth"]), found["training"]
    context.progress("note", {"text": f"training {text}"})
    scratch.mkdir(exist_ok=True)
    whole = load_checkpoint(source, prepared=context.prepared)
    model = pruned(whole, info, kept, init=init, seed=context.seed)
    note = cut(noted(info.about, str(source)), kept) if init == "teacher" else None
    result = _fit(
        model, info, settings, replace(context, scratch=scratch), held_zeros(model, note, str(source))
    )
    depth = Depth(
        blocks=len(kept),
        kept=list(kept),
        retrained=True,
        quality=validation_quality(model.to(context.device), context, settings.validation_users),
        body_parameters=body_parameters(model),
        seconds_per_epoch=result.seconds_per_epoch,
        order=order,
        init=init,
    )
    training = result.as_metrics()
    if is_first_process():
        write_json(record, {"depth": depth.model_dump(mode="json"), "training": training})
        shutil.rmtree(scratch)
    return depth, training


def _fit(
    model: SequentialRecommender,
    info: CheckpointInfo,
    settings: TrainSettings,
    context: Context,
    held: HeldZeros | None,
) -> FitResult:
    """Next-item training as in the stage `train`, through adapters where the model has them."""
    lora = info.model_config.lora if isinstance(info.model_config, LlmConfig) else None
    body = model.bodies()["user"]
    if lora is not None and isinstance(body, HuggingFaceBody):
        add_adapters(body, lora, seed=context.seed, held=held)
    objective = NextItem(model, loss=settings.loss, negatives=settings.negatives, gbce_t=settings.gbce_t)
    result = fit(objective, model, settings, context, held=held)
    if isinstance(body, HuggingFaceBody):
        merge_adapters(body, held=held)
    return result


def is_first_process() -> bool:
    """Whether this process writes; the only one of a usual run does."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def by_first_process(make: Callable[[], DepthProfile]) -> DepthProfile:
    """What `make` returns in the first process, given to all: rounding must not let them choose apart."""
    box: list[Any] = [make() if is_first_process() else None]
    if torch.distributed.is_initialized():
        broadcast_object_list(box)
    made: DepthProfile = box[0]
    return made
