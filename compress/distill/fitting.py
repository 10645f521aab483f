"""Two ways to train a student: its plain weights (or adapters of them), or through the rounding of a grid."""

from dataclasses import replace

from torch import nn

from compress.quantization.training import trained_on_grid
from recommender.models.adapters import add_adapters, merge_adapters
from recommender.models.config import LlmConfig, ModelConfig
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import SequentialRecommender
from recommender.models.zeros import HeldZeros
from recommender.quantization_scheme import Quantization
from recommender.stage import Context
from recommender.training.config import TrainSettings
from recommender.training.loop import FitResult, fit


def fit_plain(
    settings: TrainSettings,
    objective: nn.Module,
    student: SequentialRecommender,
    model_config: ModelConfig,
    context: Context,
    held: HeldZeros | None = None,
) -> FitResult:
    """Train the student, or, where its config has `lora`, adapters that are merged afterwards.

    Zeros that are `held` stay.
    """
    body = student.bodies()["user"]
    lora = model_config.lora if isinstance(model_config, LlmConfig) else None
    if lora is not None and isinstance(body, HuggingFaceBody):
        add_adapters(body, lora, seed=context.seed, held=held)
    result = fit(objective, student, settings, context, held=held)
    if isinstance(body, HuggingFaceBody):
        merge_adapters(body, held=held)
    return result


def fit_on_grid(
    settings: TrainSettings,
    objective: nn.Module,
    student: SequentialRecommender,
    quantization: Quantization,
    context: Context,
    held: HeldZeros | None = None,
) -> tuple[FitResult, Quantization]:
    """Train a quantized student through its rounding; its grid has other steps then.

    It is trained whole, also where its config has `lora`: an adapter leaves the grid when it is merged. Zeros
    that are `held` stay: 0 lies on every grid.
    """
    context.progress("note", {"text": f"training through the rounding to {quantization.scheme.summary}"})
    with trained_on_grid(student, quantization) as learnt:
        result = fit(objective, student, settings, context, held=held)
    scales = {name: steps.numpy() for name, steps in learnt.items()}
    return result, replace(quantization, scales=scales)
