"""The stage `quantize`: hold the matrices of a recommender's user body in fewer bits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from compress.quantization.schemes import MIXED, PRESETS, Preset, read_asked, read_file
from recommender.errors import InputError
from recommender.models.config import BODILESS, LlmConfig
from recommender.quantization_scheme import (
    BITSANDBYTES,
    UNREAD,
    Group,
    QuantizationScheme,
    TableBits,
    parsed_scheme,
)
from recommender.sparsity import Sparsity, noted
from recommender.stage import Bound, Context, OneSourceConfig, Outputs, Shape, lasting

if TYPE_CHECKING:
    from compress.quantization.apply import Work
    from compress.quantization.settled import Settled
    from recommender.checkpoint import CheckpointInfo
    from recommender.models.interface import SequentialRecommender

SchemeOption = Annotated[
    Preset | Literal["mixed"] | QuantizationScheme | Path,
    BeforeValidator(read_asked, json_schema_input_type=Preset | Literal["mixed"] | str | QuantizationScheme),
]
Method = Literal["rtn", "gptq"]


class QuantizeConfig(OneSourceConfig):
    """Round the matrices of a checkpoint's body (and its item table) to a grid, and note which.

    ```yaml
    - {stage: quantize, of: student, as: small, scheme: int8-dynamic}
    ```
    """

    stage: Literal["quantize"] = "quantize"
    of: str = Field(description="the checkpoint to quantize")
    as_: str = Field(alias="as", description="name of the quantized checkpoint")
    scheme: SchemeOption = Field(
        description="int8-dynamic (weights and activations, for CPUs), int8-static (calibrated ranges, for "
        "TensorRT), int4 (weights only), nf4 and llm-int8 (bitsandbytes), mixed (chosen by `kl_budget`); or "
        "a scheme of your own: a map, or a .yaml or .json file"
    )
    method: Method | None = Field(
        None,
        description="rtn: round to nearest; gptq: rounding errors are fed back by what the inputs are. null: "
        "the scheme's own, or rtn",
    )
    item_table: TableBits | None = Field(
        None, description="the item vectors, a scale per item. null: the scheme's own, or fp32"
    )
    projections: bool = Field(
        False,
        description="count the projections between item vectors and body (`input_projection`, "
        "`output_projection`) among the matrices; false: a scheme of your own may still name them",
    )
    group: Group | None = Field(32, description="int4, mixed: columns that share a scale; null: whole rows")
    calibration_users: int = Field(
        1024, ge=1, description="users whose training histories (for losses: and next items) are looked at"
    )
    percentile: float = Field(
        100.0,
        gt=50,
        le=100,
        description="int8-static: share of the inputs that a range holds, in percent; 100: from the "
        "smallest to the largest",
    )
    sensitivity: bool = Field(
        False,
        description="measure by how much each matrix alone, rounded by `method`, moves what is recommended "
        "(KL divergence over the catalogue; mixed: always)",
    )
    kl_budget: float = Field(
        0.0003,
        ge=0,
        description="mixed: how far the recommended distribution may move: mean KL divergence (nats) of the "
        "float model's to the quantized model's over the catalogue, as measured of all that is written "
        "(matrices rounded by `method`, and the item table)",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.scheme in BITSANDBYTES and self.method == "gptq":
            raise ValueError(f"{self.scheme} is rounded by bitsandbytes: leave method out")
        return self

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A source that has no matrices, or is quantized already."""
        source = known.get(self.of)
        if source is not None and isinstance(source.model, BODILESS):
            return [("of", NO_MATRICES.format(name=self.of))]
        if source is not None and source.quantized is not None:
            return [("of", TWICE.format(name=self.of, scheme=source.quantized))]
        if source is not None and source.sparsity is not None and self._asked_method == "gptq":
            return [("method", FILLS.format(name=self.of))]
        if self.projections and source is not None and not isinstance(source.model, LlmConfig | None):
            return [("projections", f"{self.of!r} has no projections around its body: leave this out")]
        return []

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """The source, quantized."""
        source = known.get(self.of, Shape("checkpoint"))
        match self.scheme:
            case QuantizationScheme():
                summary = self._with_table(self.scheme).summary
            case Path():
                summary = UNREAD
            case _:
                summary = self.scheme
        return replace(source, quantized=summary)

    @property
    def _asked_method(self) -> Method:
        """As far as it is known before a file is read."""
        own: Method = self.scheme.method if isinstance(self.scheme, QuantizationScheme) else "rtn"
        return self.method or own

    def _with_table(self, scheme: QuantizationScheme) -> QuantizationScheme:
        return scheme.model_copy(update={} if self.item_table is None else {"item_table": self.item_table})

    def asked(self, names: Sequence[str], beside: Sequence[str] = ()) -> QuantizationScheme:
        """The scheme for matrices of these names; of `mixed` everything but its matrices.

        `beside`: what a scheme of one's own may name, too. Raises InputError where it names others, or
        nothing at all.
        """
        from compress.quantization.schemes import preset, resolved

        if isinstance(self.scheme, Path):
            try:
                own = parsed_scheme(read_file(self.scheme), str(self.scheme))
            except ValueError as error:
                raise InputError(str(error), where="quantize.scheme") from error
            return self.model_copy(update={"scheme": own}).asked(names, beside)
        if isinstance(self.scheme, QuantizationScheme):
            given = self._with_table(self.scheme)
            update: dict[str, Any] = {"matrices": resolved(given.matrices, names, beside)}
            scheme = given.model_copy(
                update=update | ({} if self.method is None else {"method": self.method})
            )
            if not scheme.kinds and scheme.item_table == "fp32":
                raise InputError("the scheme quantizes nothing", where="quantize.scheme")
            return scheme
        matrices = {} if self.scheme == "mixed" else dict.fromkeys(names, preset(self.scheme, self.group))
        table, method = self.item_table or "fp32", self.method or "rtn"
        return QuantizationScheme(matrices=matrices, item_table=table, method=method)


FILLS = (
    "{name!r} is sparse, and gptq feeds rounding errors back into its zeros, which would fill them: use "
    "method: rtn, to which 0 stays 0"
)
NO_MATRICES = "{name!r} has no matrices to quantize"
TWICE = (
    "{name!r} is quantized already ({scheme}), and rounding twice loses twice: quantize what it was made from"
)
assert {*PRESETS} > {*BITSANDBYTES}


def run(config: QuantizeConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Round, note the scheme, save to `context.folder / "checkpoint"`, and the scheme as `scheme.yaml`.

    Metrics: the validation loss before, with rounded weights, and with inputs rounded as served; `damage`,
    what that does to the answers (divergence, loss, NDCG@10); bytes of the matrices and of the item table as
    the scheme holds them; `sensitivity` where it was measured. Raises InputError when the source has no
    matrices, holds NaN, is quantized already, was trained on other data or has not the zeros that it notes,
    when the scheme names unknown matrices, or nobody has a history to calibrate on, StageError where a budget
    cannot be kept, or leaves nothing to quantize.
    """
    from compress.quantization.apply import Work
    from recommender.checkpoint import read_info, save_checkpoint
    from recommender.files import write_text
    from recommender.models.linears import PROJECTIONS

    folder = inputs[config.of].path
    info = read_info(folder)
    _check(config, info)
    model, note = _opened(folder, info, context)
    work = Work.on(model, context, users=config.calibration_users, name=config.of)
    names = [name for name in work.linears if config.projections or name not in PROJECTIONS]
    scheme = config.asked(names, list(work.linears))
    if scheme.method == "gptq" and note is not None:
        raise InputError(FILLS.format(name=config.of), where="quantize.method")
    before, settled = work.loss(), _settled(config, scheme, work, names)
    scheme = settled.scheme
    if "warning" in settled.metrics:
        context.progress("note", {"text": f"WARNING: {settled.metrics['warning']}"})
    context.progress("note", {"quantizing": len(scheme.matrices), "scheme": scheme.summary})
    quantization = work.apply(scheme)
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=info.model_config,
        split=context.evaluation.split,
        about={**lasting(info.about), **config.named, **_zeros(model, note), "quantized": scheme.summary},
        quantization=quantization,
    )
    from compress.quantization.schemes import scheme_text

    write_text(context.folder / "scheme.yaml", scheme_text(scheme, config.of, settled.notes))
    return Outputs(
        {
            "scheme": scheme.summary,
            "method": scheme.method,
            "item_table": scheme.item_table,
            **work.bytes_of(scheme),
            "validation_loss_before": before,
            "validation_loss_weights": work.loss(),
            **work.served(scheme),
            **settled.metrics,
        }
    )


def _settled(
    config: QuantizeConfig, scheme: QuantizationScheme, work: "Work", names: Sequence[str]
) -> "Settled":
    """The scheme with measured ranges, or chosen where it is mixed."""
    from compress.quantization.settled import as_asked, chosen

    if config.scheme == MIXED:
        return chosen(work, scheme, names, group=config.group, budget=config.kl_budget)
    return as_asked(work, scheme, percentile=config.percentile, sensitivity=config.sensitivity)


def _zeros(model: "SequentialRecommender", note: Sparsity | None) -> dict[str, Any]:
    """The note of zeros, to which rounding has added some; nothing of a dense model."""
    from recommender.models.zeros import measure

    if note is None:
        return {}
    return {"sparsity": measure(model.bodies()["user"], note).model_dump(mode="json")}


def _opened(
    folder: Path, info: "CheckpointInfo", context: Context
) -> tuple["SequentialRecommender", Sparsity | None]:
    """The model and its note of zeros.

    Raises InputError where it was trained on other data, or has not the zeros that it notes.
    """
    from recommender.checkpoint import check_trained_on, load_checkpoint
    from recommender.models.zeros import check_zeros

    check_trained_on(info, context.prepared, context.evaluation.split, str(folder))
    model, note = load_checkpoint(folder, device=context.device), noted(info.about, str(folder))
    check_zeros(model, note, str(folder))
    return model, note


def _check(config: QuantizeConfig, info: "CheckpointInfo") -> None:
    """The checks of `problems`, now that the checkpoint can be read. Raises InputError with the first."""
    note = noted(info.about, config.of)
    planned = None if note is None else note.planned
    known = Shape("checkpoint", model=info.model_config, quantized=info.quantized, sparsity=planned)
    for place, wrong in config.problems({config.of: known}):
        raise InputError(wrong, where=f"quantize.{place}")
