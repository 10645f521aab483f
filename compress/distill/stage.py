"""The stage `distill`: train a student against its teacher."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from recommender.data.config import Section
from recommender.errors import InputError
from recommender.models.config import BODILESS, LlmConfig, ModelConfig
from recommender.quantization_scheme import BITSANDBYTES, read_quantization
from recommender.sparsity import noted
from recommender.stage import Bound, Context, Outputs, Shape, StageConfig
from recommender.training.config import TrainSettings

if TYPE_CHECKING:
    from compress.distill.objective import Distillation
    from recommender.checkpoint import CheckpointInfo
    from recommender.models.interface import SequentialRecommender


class TermWeights(Section):
    """Weights of SLMRec's terms beside the cross-entropy (whose weight is 1); 0 leaves a term out.

    The paper used 1 and 0.1 on all data sets, and 1, 1, 0.01, 0.1 for multi-supervision. The code's sums over
    blocks make the same numbers weigh more.
    """

    cos: float = Field(1.0, ge=0, description="direction of hidden states")
    norm: float = Field(0.1, ge=0, description="distance of hidden states")
    ms: float = Field(1.0, ge=0, description="multi-supervision of the inner blocks")


class DistillConfig(TrainSettings, StageConfig):
    """Train a student (a checkpoint, usually a pruned one) against a frozen teacher.

    ```yaml
    - {stage: distill, of: pruned, teacher: teacher, as: student, method: slmrec, positions: all}
    ```
    """

    distributed: ClassVar[bool] = True

    stage: Literal["distill"]
    of: str = Field(description="the checkpoint that the student starts from")
    teacher: str = Field(description="the checkpoint to learn from")
    as_: str = Field(alias="as", description="name of the distilled checkpoint")
    method: Literal["slmrec", "logits", "none"] = Field(
        "slmrec",
        description="slmrec: hidden states after aligned blocks; logits: scores of the catalogue; none: "
        "plain cross-entropy (the control)",
    )
    blocks: int = Field(
        4, ge=1, description="slmrec: parts that both bodies are cut into; divides both numbers of blocks"
    )
    form: Literal["paper", "code"] = Field(
        "paper", description="slmrec: mean over blocks and squared norm; code: sum and plain norm"
    )
    norm: Literal["squared", "l2"] | None = Field(None, description="slmrec: the norm; null: the form's own")
    weights: TermWeights = Field(default_factory=TermWeights, description="slmrec: weights of the terms")
    temperature: float = Field(1.0, gt=0, description="logits: softens both distributions")
    kd_weight: float = Field(
        0.5, gt=0, le=1, description="logits: weight of the teacher's term; cross-entropy has the rest"
    )

    fake_quantize: bool | None = Field(
        None,
        description="train a quantized student through its rounding, so that it stays on its grid; null: "
        "where `of` is quantized. false: its grid is given up",
    )

    @property
    def consumes(self) -> tuple[str, ...]:
        """The student's start and the teacher."""
        return (self.of, self.teacher)

    @property
    def produces(self) -> str:
        """The distilled student."""
        return self.as_

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.method == "slmrec":
            if not (self.weights.cos or self.weights.norm or self.weights.ms):
                raise ValueError("all weights are 0, so slmrec would teach nothing; use method: none")
            if self.blocks == 1 and self.weights.ms:
                raise ValueError("one block has no inner blocks to supervise: set weights.ms to 0")
        return self

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """Models or blocks that do not fit, widths that differ, a suffix that is read too early."""
        found: list[tuple[str, str]] = []
        names = (("of", self.of), ("teacher", self.teacher))
        sides = [(key, name, known[name]) for key, name in names if name in known]
        for key, name, side in sides:
            if isinstance(side.model, BODILESS):
                found.append((key, f"{name!r} is {side.model.kind}, which has no hidden states"))
            elif self.method == "slmrec" and side.layers is not None and side.layers % self.blocks:
                wrong = f"{self.blocks} does not divide the {side.layers} blocks of {name!r}"
                found.append(("blocks", wrong))
        if self.method == "slmrec" and len({w for *_, side in sides if (w := _width(side.model))}) > 1:
            found.append(("teacher", WIDTHS_DIFFER))
        if self.of in known and (refused := self._untrainable(known[self.of].quantized)):
            found.append(("fake_quantize" if self.fake_quantize else "of", refused))
        if self.positions != "last" and any(_has_suffix(side.model) for *_, side in sides):
            found.append(("positions", SUFFIX))
        return found

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """As many blocks as it started with, on the same grid."""
        start = known.get(self.of, Shape("checkpoint"))
        return replace(start, quantized=None) if self.fake_quantize is False else start

    def _untrainable(self, quantized: str | None) -> str | None:
        """Why a student with this scheme (None: not quantized) cannot be trained as asked, or None."""
        if quantized is None:
            return NOT_QUANTIZED.format(name=self.of) if self.fake_quantize else None
        kinds = [kind for kind in quantized.split("+") if kind in BITSANDBYTES]
        if kinds and self.fake_quantize is not False:
            return UNTRAINABLE.format(kinds=" and ".join(kinds))
        return None


NOT_QUANTIZED = "{name!r} is not quantized: put a stage quantize before this one, or leave fake_quantize out"
UNTRAINABLE = (
    "{kinds} cannot be trained through: train the adapters of a frozen body (model.load_in with lora) and "
    "quantize what comes out, or set fake_quantize to false, which leaves the grid"
)
WIDTHS_DIFFER = "slmrec needs a student and a teacher of the same hidden size (method: logits does not)"
SUFFIX = "with a prompt suffix only the last position reads the whole prompt: set positions to last"


def _width(model: ModelConfig | None) -> int | None:
    """Hidden size where the config tells it."""
    if model is None or isinstance(model, BODILESS):
        return None
    return None if isinstance(model, LlmConfig) and model.backbone else model.hidden


def _has_suffix(model: ModelConfig | None) -> bool:
    return isinstance(model, LlmConfig) and bool(model.suffix)


def run(config: DistillConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Train, keep the best weights by validation NDCG@10, drop the auxiliary heads, save to `checkpoint/`.

    A quantized student is trained through its rounding and validated as it will be served; zeros that the
    student's checkpoint notes are held. Metrics: those of `fit` (every term at the first step and per epoch)
    and the teacher's validation NDCG@10. Raises InputError for sides that do not fit each other or the data,
    StageError when a term is dead at the first step.
    """
    from compress.distill.fitting import fit_on_grid, fit_plain
    from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
    from recommender.models.zeros import held_zeros
    from recommender.training.validation import validation_quality

    infos = {name: read_info(inputs[name].path) for name in config.consumes}
    _check(config, infos)
    load = partial(load_checkpoint, prepared=context.prepared)
    student, teacher = load(inputs[config.of].path), load(inputs[config.teacher].path)
    teacher.requires_grad_(False)
    info = infos[config.of]
    objective = build_objective(config, student, teacher, infos, context.seed)
    source = str(inputs[config.of].path)
    held = held_zeros(student, noted(info.about, source), source)
    quantization = None
    if config.fake_quantize is not False:
        quantization = read_quantization(inputs[config.of].path)
    if quantization is None:
        result = fit_plain(config, objective, student, info.model_config, context, held)
    else:
        result, quantization = fit_on_grid(config, objective, student, quantization, context, held)
    teacher_quality = validation_quality(teacher.to(context.device), context, config.validation_users)
    save_checkpoint(
        student,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=info.model_config,
        split=context.evaluation.split,
        about={
            **info.about,
            "stage": config.stage,
            "name": config.as_,
            "of": config.of,
            "teacher": config.teacher,
            "method": config.method,
            "best_ndcg": result.best_ndcg,
            "quantized": None if quantization is None else quantization.scheme.summary,
        },
        quantization=quantization,
    )
    return Outputs({**result.as_metrics(), "teacher_ndcg": teacher_quality["ndcg@10"]})


def _check(config: DistillConfig, infos: Mapping[str, "CheckpointInfo"]) -> None:
    """The checks of `problems`, now that the checkpoints can be read. Raises InputError with the first."""
    known = {
        name: Shape(
            "checkpoint", layers=info.blocks.get("user"), model=info.model_config, quantized=info.quantized
        )
        for name, info in infos.items()
    }
    for place, wrong in config.problems(known):
        raise InputError(wrong, where=f"distill.{place}")


def build_objective(
    config: DistillConfig,
    student: "SequentialRecommender",
    teacher: "SequentialRecommender",
    infos: Mapping[str, "CheckpointInfo"],
    seed: int,
) -> "Distillation":
    """The module to train; auxiliary heads start from `seed`."""
    import torch

    from compress.distill.logits import LogitMatching
    from compress.distill.matching import BlockMatching
    from compress.distill.objective import Distillation
    from recommender.training.objective import catalogue_loss

    loss = partial(catalogue_loss, loss=config.loss, negatives=config.negatives, gbce_t=config.gbce_t)
    if config.method == "none":
        return Distillation(student, loss=loss, weights={"ce": 1.0})
    if teacher.max_length < student.max_length:
        raise InputError(
            f"the teacher reads {teacher.max_length} items, the student {student.max_length}",
            where="distill.teacher",
        )
    if config.method == "logits":
        weights = {"ce": 1.0 - config.kd_weight, "kd": config.kd_weight}
        terms: torch.nn.Module = LogitMatching(temperature=config.temperature)
        return Distillation(student, loss=loss, weights=weights, terms=terms, teacher=teacher)
    width = hidden_size(student)
    if width != hidden_size(teacher):
        raise InputError(WIDTHS_DIFFER, where="distill.teacher")
    weights = config.weights.model_dump()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        terms = BlockMatching(
            student_layers=infos[config.of].blocks["user"],
            teacher_layers=infos[config.teacher].blocks["user"],
            blocks=config.blocks,
            hidden=width,
            item_dim=student.item_table().shape[1],
            form=config.form,
            norm=config.norm,
            weights=weights,
            loss=loss,
        )
    return Distillation(student, loss=loss, weights={"ce": 1.0, **weights}, terms=terms, teacher=teacher)


def hidden_size(model: "SequentialRecommender") -> int:
    """Width of the residual stream, asked of the model itself."""
    import torch

    from recommender.models.interface import History

    with torch.inference_mode():
        return int(model.hidden(History(torch.ones(1, 1, dtype=torch.long))).final.shape[-1])
