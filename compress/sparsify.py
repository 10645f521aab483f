"""The stage `sparsify`: set weights inside a recommender's blocks to zero."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from recommender.errors import InputError, nearest
from recommender.models.config import BODILESS, LlmConfig, ModelConfig, SasrecConfig
from recommender.quantization_scheme import LEAVES_GRID
from recommender.sparsity import Sparsity, Zeros, noted
from recommender.stage import Bound, Context, OneSourceConfig, Outputs, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from compress.calibration import Calibration
    from recommender.checkpoint import CheckpointInfo
    from recommender.models.interface import SequentialRecommender
    from recommender.models.linears import Linear


class SparsifyConfig(OneSourceConfig):
    """Prune single weights of a checkpoint; its shape stays, and later trainings keep the zeros.

    ```yaml
    - {stage: sparsify, of: student, as: sparse, method: sparsegpt, pattern: "2:4"}
    ```
    """

    stage: Literal["sparsify"] = "sparsify"
    of: str = Field(description="the checkpoint to prune")
    as_: str = Field(alias="as", description="name of the sparse checkpoint")
    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "sparsegpt",
        description="what goes: weights of least size in each matrix; of least size times the size of their "
        "input, in each row (Wanda); or those that the others can best make up for, which they then do",
    )
    sparsity: float = Field(0.5, gt=0, lt=1, description="share of each matrix that becomes zero")
    pattern: Literal["unstructured", "2:4"] = Field(
        "unstructured",
        description="2:4: in each row, 2 of every 4 inputs in a row (what sparse tensor cores can use)",
    )
    matrices: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="which matrices of a block, by the last part of their names (up_proj, down_proj, ...); "
        "null: all",
    )
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="which blocks, numbered from 0; null: all"
    )
    calibration_users: int = Field(
        1024, ge=1, description="users whose training histories tell what the inputs of a matrix look like"
    )

    @field_validator("pattern", mode="before")
    @classmethod
    def _not_base_60(cls, given: object) -> object:
        """YAML reads a bare 2:4 as minutes and seconds."""
        return "2:4" if given == 2 * 60 + 4 else given

    @model_validator(mode="after")
    def _half(self) -> Self:
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"2:4 prunes half of the weights: leave sparsity ({self.sparsity:g}) out")
        return self

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A source without blocks, or with too few; widths that 2:4 does not fit; zeros that are there."""
        source = known.get(self.of)
        if source is None:
            return []
        if isinstance(source.model, BODILESS):
            return [("of", NO_BLOCKS.format(name=self.of))]
        if source.quantized is not None:
            return [("of", LEAVES_GRID.format(name=self.of, scheme=source.quantized))]
        found = []
        if wrong := self.beyond(source.layers):
            found.append(("blocks", wrong))
        everything = self.matrices is None and self.blocks is None
        known_everywhere = source.sparsity is not None and source.sparsity.everywhere
        if everything and known_everywhere and (wrong := self.already(source.sparsity, repr(self.of))):
            found.append(("sparsity", wrong))
        odd = {name: width for name, width in self._inputs(source.model).items() if width % 4}
        if self.pattern == "2:4" and odd:
            told = " and ".join(f"{name} {width}" for name, width in odd.items())
            found.append(("pattern", f"2:4 needs widths that 4 divides: {self.of!r} has {told}"))
        return found

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """The source with zeros."""
        source = known.get(self.of, Shape("checkpoint"))
        everywhere = self.matrices is None and self.blocks is None
        return replace(source, sparsity=Zeros(self.pattern, self.sparsity, everywhere))

    def _inputs(self, model: ModelConfig | None) -> dict[str, int]:
        """How many inputs the matrices to be pruned have, by what these are, as far as it is known."""
        widths = {} if model is None else inner_widths(model)
        read = {kind for name in self.matrices or () for kind in READS.get(name, ("hidden",))}
        if "heads" in read and "heads" not in widths:
            read.add("hidden")  # heads together are as wide as the stream
        return {kind: width for kind, width in widths.items() if self.matrices is None or kind in read}

    def beyond(self, layers: int | None) -> str | None:
        """What is wrong with `blocks` of a body with so many (None: not known yet), or None."""
        over = [block for block in self.blocks or () if layers is not None and block >= layers]
        return f"no block {over[0]}: {self.of!r} has {layers} blocks" if over else None

    def already(self, there: Zeros | None, name: str) -> str | None:
        """Why nothing would be pruned where such zeros are there already, or None."""
        if there is None:
            return None
        new_pattern = (there.pattern, self.pattern) == ("unstructured", "2:4")
        if self.sparsity > there.share or new_pattern:
            return None
        return (
            f"{name} is sparse already ({there.pattern}, {there.share:.0%} zeros, which stay): pruning to "
            f"{self.sparsity:.0%} would remove nothing more"
        )


READS = {
    "down_proj": ("ffn",), "fc2": ("ffn",), "dense_4h_to_h": ("ffn",),
    "o_proj": ("heads",), "out_proj": ("heads",), "dense": ("heads",), "c_proj": ("ffn", "heads"),
}  # fmt: skip
"""What the matrices of these names read; all others read the stream."""
NO_BLOCKS = "{name!r} has no blocks whose weights could be pruned"


def inner_widths(model: ModelConfig) -> dict[str, int]:
    """What the matrices of the blocks multiply, as far as the config tells: {"hidden": 64, "ffn": 192}."""
    if isinstance(model, SasrecConfig):
        return {"hidden": model.hidden}
    if isinstance(model, LlmConfig) and model.backbone is None:
        heads = model.heads * model.head_size
        own = {"heads": heads} if heads != model.hidden else {}
        return {"hidden": model.hidden, "ffn": model.ffn or 3 * model.hidden, **own}
    return {}


def run(config: SparsifyConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Prune block after block on calibration histories, save to `context.folder / "checkpoint"`.

    Metrics: the zeros of every matrix and its error on the calibration histories, zeros over all body
    matrices, body parameters and everything, and the quality on the validation part. Raises InputError for a
    source that cannot be pruned so, that was trained on other data, that has not the zeros that it notes, or
    whose numbers are not finite.
    """
    from compress.sparsify_body import sparsify
    from recommender.checkpoint import read_info, save_checkpoint
    from recommender.models.zeros import measure
    from recommender.training.validation import validation_quality

    folder = inputs[config.of].path
    info = read_info(folder)
    before = noted(info.about, str(folder))
    model, drawn = _opened(config, folder, info, before, context)
    errors = sparsify(
        model,
        chosen(config, model, before),
        drawn,
        method=config.method,
        sparsity=config.sparsity,
        pattern=config.pattern,
        progress=context.progress,
    )
    quality = validation_quality(model, context)
    note = measure(model.bodies()["user"], _note(config, errors, before))
    context.progress("note", {"zeros in the matrices of the body": f"{note.share:.1%}", **quality})
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=info.model_config,
        split=context.evaluation.split,
        about={**info.about, **_about(config, note), "best_ndcg": quality["ndcg@10"]},
    )
    calibrated = {"users": len(drawn.items), "positions": int((drawn.items != 0).sum())}
    return Outputs({**_zeros(note, info, errors), "calibration": calibrated, **quality})


def _opened(
    config: SparsifyConfig, folder: Path, info: "CheckpointInfo", before: Sparsity | None, context: Context
) -> tuple["SequentialRecommender", "Calibration"]:
    """The model and what it is calibrated on. Raises InputError where they do not fit, or are not there."""
    from compress import calibration
    from compress.finite import check_finite
    from recommender.checkpoint import check_trained_on, load_checkpoint
    from recommender.models.zeros import check_zeros

    if isinstance(info.model_config, BODILESS) or not info.blocks.get("user"):
        raise InputError(NO_BLOCKS.format(name=config.of), where="sparsify.of")
    if info.quantized is not None:
        raise InputError(LEAVES_GRID.format(name=config.of, scheme=info.quantized), where="sparsify.of")
    if wrong := config.beyond(info.blocks["user"]):
        raise InputError(wrong, where="sparsify.blocks")
    check_trained_on(info, context.prepared, context.evaluation.split, str(folder))
    model = load_checkpoint(folder, prepared=context.prepared, device=context.device)
    check_finite(model, config.of, where="sparsify.of")
    check_zeros(model, before, str(folder))
    drawn = calibration.sample(
        context.prepared,
        context.split,
        users=config.calibration_users,
        max_length=model.max_length,
        seed=context.seed,
    )
    return model, drawn


def _note(config: SparsifyConfig, pruned: Mapping[str, float], before: Sparsity | None) -> Sparsity:
    """What is to be noted, its counts still to be measured; matrices that were sparse before stay noted."""
    old = {} if before is None else before.matrices
    return Sparsity(
        method=config.method,
        pattern=config.pattern,
        sparsity=config.sparsity,
        matrices=dict.fromkeys([*old, *pruned], 0.0),
        zeros=0,
        weights=1,
    )


def _about(config: SparsifyConfig, note: Sparsity) -> dict[str, Any]:
    """What the checkpoint says of how it came to be."""
    own = {"stage": config.stage, "name": config.as_, "of": config.of}
    return {**own, "sparsity": note.model_dump(mode="json")}


def _zeros(note: Sparsity, info: "CheckpointInfo", errors: Mapping[str, float]) -> dict[str, Any]:
    """The metrics on zeros; every share says what it is a share of."""
    return {
        "zeros": note.zeros,
        "share_of_body_matrices": note.share,
        "share_of_body_parameters": note.zeros / info.body_parameters,
        "share_of_everything": note.zeros / info.parameters,
        "matrices": {
            name: {"share_of_zeros": note.matrices[name], "relative_error": error}
            for name, error in errors.items()
        },
    }


def chosen(
    config: SparsifyConfig, model: "SequentialRecommender", before: Sparsity | None
) -> dict[str, "Linear"]:
    """The matrices to prune, by name.

    Raises InputError for names that no matrix has, and for a matrix that cannot be pruned so.
    """
    from recommender.models.linears import body_linears

    every = body_linears(model.bodies()["user"])
    kinds = {name.rpartition(".")[2] for name in every}
    for kind in config.matrices or ():
        if kind not in kinds:
            raise InputError(f"no matrix is called {kind!r}{nearest(kind, kinds)}", where="sparsify.matrices")
    found = {
        name: each
        for name, each in every.items()
        if (config.matrices is None or name.rpartition(".")[2] in config.matrices)
        and (config.blocks is None or each.block in config.blocks)
    }
    for name, each in found.items():
        matrix = each.matrix()
        if config.pattern == "2:4" and matrix.shape[1] % 4:
            raise InputError(
                f"2:4 needs a number of inputs that 4 divides, but {name} has {matrix.shape[1]}",
                where="sparsify.pattern",
                fix="prune unstructured, or leave this matrix out with `matrices`",
            )
        if wrong := config.already(_there(before, name, matrix), name):
            raise InputError(wrong, where="sparsify.sparsity", fix="ask for more, or for other `matrices`")
    return found


def _there(before: Sparsity | None, name: str, matrix: "Tensor") -> Zeros | None:
    """The zeros of a matrix [out, in] by the note of an earlier pruning, which rounded the share of a row
    down.
    """
    from recommender.models.zeros import is_2_to_4

    if before is None or name not in before.matrices:
        return None
    share = before.matrices[name]
    rounded = 0 <= before.sparsity - share < 1 / matrix.shape[1]
    pattern: Literal["unstructured", "2:4"] = "2:4" if is_2_to_4(matrix) else "unstructured"
    return Zeros(pattern, before.sparsity if rounded else share)
