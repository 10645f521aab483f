"""The stage `prune-depth`: remove whole blocks of a recommender's user body."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from compress.starts import Init, start_problem
from recommender.errors import InputError
from recommender.models.config import BODILESS, ModelConfig
from recommender.quantization_scheme import LEAVES_GRID
from recommender.stage import Bound, Context, OneSourceConfig, Outputs, Shape

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender
    from recommender.sparsity import Sparsity

Importance = Literal["first", "block-influence", "angular", "greedy", "uniform"]


class PruneDepthConfig(OneSourceConfig):
    """Keep some blocks of a checkpoint's body and drop the others.

    ```yaml
    - {stage: prune-depth, of: teacher, as: pruned, keep: 4, importance: first, init: teacher}
    ```
    """

    stage: Literal["prune-depth"] = "prune-depth"
    of: str = Field(description="the checkpoint to prune")
    as_: str = Field(alias="as", description="name of the pruned checkpoint")
    keep: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        description="how many blocks stay, or which (numbered from 0; `importance` is then not used)"
    )
    importance: Importance = Field(
        "first",
        description="which blocks stay: the first (SLMRec), those of greatest influence (ShortGPT), all "
        "but the cut of least angular distance (Gromov), greedy by validation loss (SLEB), or evenly spread",
    )
    init: Init = Field(
        "teacher",
        description="weights of what stays: the trained ones; base: the body as it was before training, with "
        "fresh projections (the SLMRec paper); fresh: everything anew",
    )
    calibration_users: int = Field(
        1024, ge=1, description="users whose training histories (greedy: and next items) are looked at"
    )

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A selection that the source cannot give, or a source that has no blocks."""
        source = known.get(self.of)
        if source is not None and isinstance(source.model, BODILESS):
            return [("of", NO_BLOCKS.format(name=self.of))]
        if source is not None and (lost := start_problem(self.init, source.model, source.narrowed)):
            return [("init", lost)]
        if source is not None and source.quantized is not None:
            return [("of", LEAVES_GRID.format(name=self.of, scheme=source.quantized))]
        wrong = selection_problem(self.keep, None if source is None else source.layers, self.of)
        return [("keep", wrong)] if wrong else []

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """The source with fewer blocks."""
        layers = self.keep if isinstance(self.keep, int) else len(self.keep)
        source = known.get(self.of)
        model = None if source is None or source.model is None else with_layers(source.model, layers)
        zeros = source.sparsity if source is not None and self.init == "teacher" else None
        if zeros is not None and not zeros.everywhere:
            zeros = None  # the blocks that have them may be those that go: running will tell
        narrowed = source is not None and source.narrowed
        return Shape("checkpoint", layers=layers, model=model, sparsity=zeros, narrowed=narrowed)


NO_BLOCKS = "{name!r} has no blocks to remove"


def selection_problem(keep: int | Sequence[int], layers: int | None, name: str) -> str | None:
    """What is wrong with a selection out of `layers` blocks (None: not known yet), or None."""
    if isinstance(keep, int):
        return f"cannot keep {keep} of the {layers} blocks of {name!r}" if layers and keep > layers else None
    if not keep:
        return "an empty list keeps no block"
    if repeated := sorted({block for block in keep if keep.count(block) > 1}):
        return f"block {repeated[0]} is listed more than once"
    if layers and (beyond := [block for block in keep if block >= layers]):
        return f"no block {beyond[0]}: {name!r} has {layers} blocks, 0 to {layers - 1}"
    return None


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The config of the same model with another number of blocks."""
    return config if isinstance(config, BODILESS) else config.model_copy(update={"layers": layers})


def run(config: PruneDepthConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Choose blocks, cut, save to `context.folder / "checkpoint"`.

    Metrics: `kept`, the scores that led to it, parameters before and after. Raises InputError when the
    source has no blocks, too few of them, not the zeros that it notes, or was trained on other data.
    """
    from compress.initial import origin_of, parameters_of, pruned
    from recommender.checkpoint import check_trained_on, load_checkpoint, read_info, save_checkpoint
    from recommender.models.zeros import check_zeros
    from recommender.sparsity import noted

    source_folder = inputs[config.of].path
    info = read_info(source_folder)
    if isinstance(info.model_config, BODILESS) or not info.blocks.get("user"):
        raise InputError(NO_BLOCKS.format(name=config.of), where="prune-depth.of")
    if info.quantized is not None:
        raise InputError(LEAVES_GRID.format(name=config.of, scheme=info.quantized), where="prune-depth.of")
    layers = info.blocks["user"]
    if wrong := selection_problem(config.keep, layers, config.of):
        raise InputError(wrong, where="prune-depth.keep")
    check_trained_on(info, context.prepared, context.evaluation.split, str(source_folder))
    source = load_checkpoint(source_folder, prepared=context.prepared, device=context.device)
    note = noted(info.about, str(source_folder))
    check_zeros(source, note, str(source_folder))
    kept, scores = choose(config, source, layers, context)
    context.progress("note", {"kept": ", ".join(map(str, kept)), "of": layers})
    removed = parameters_of(source, set(range(layers)) - set(kept))
    origin = origin_of(info, kept, context.seed)
    model = pruned(source, info, kept, init=config.init, seed=context.seed)
    zeros = zeros_left(model, note, kept, config, context)
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=with_layers(info.model_config, len(kept)),
        split=context.evaluation.split,
        about={**origin, **zeros, "stage": config.stage, "of": config.of, "kept": kept, "init": config.init},
    )
    after = read_info(context.folder / "checkpoint")
    return Outputs(
        {
            "kept": kept,
            "blocks_before": layers,
            "blocks_after": len(kept),
            **scores,
            "parameters_before": info.parameters,
            "parameters_after": after.parameters,
            "removed_parameters": removed,
            "body_parameters_before": info.body_parameters,
            "body_parameters_after": after.body_parameters,
        }
    )


def zeros_left(
    model: "SequentialRecommender",
    note: "Sparsity | None",
    kept: Sequence[int],
    config: PruneDepthConfig,
    context: Context,
) -> dict[str, Any]:
    """What the pruned checkpoint says of zeros: those of the blocks that stay; none with other weights."""
    from recommender.models.zeros import measure
    from recommender.sparsity import cut

    if note is None:
        return {}
    left = cut(note, kept) if config.init == "teacher" else None
    if left is None:
        lost = (
            "the blocks that stay are" if config.init == "teacher" else "the weights that it starts from are"
        )
        context.progress("note", {"text": f"{config.of} is sparse, {lost} not (init: {config.init})"})
        return {}
    return {"sparsity": measure(model.bodies()["user"], left).model_dump(mode="json")}


def choose(
    config: PruneDepthConfig, source: "SequentialRecommender", layers: int, context: Context
) -> tuple[list[int], dict[str, Any]]:
    """(kept blocks in ascending order, the scores that decided: none where nothing was measured)."""
    from compress import calibration, depth

    if not isinstance(config.keep, int):
        return sorted(config.keep), {}
    keep, cut = config.keep, layers - config.keep
    if config.importance == "first":
        return depth.keep_first(layers, keep), {}
    if config.importance == "uniform":
        return depth.keep_uniform(layers, keep), {}
    drawn = calibration.sample(
        context.prepared,
        context.split,
        users=config.calibration_users,
        max_length=source.max_length,
        seed=context.seed,
    )
    if config.importance == "block-influence":
        influence = depth.block_influence(calibration.streams(source, drawn))
        return depth.keep_influential(influence, keep), {"block_influence": influence}
    if cut == 0:
        return depth.keep_first(layers, keep), {}
    if config.importance == "angular":
        distances = depth.angular_distances(calibration.streams(source, drawn), cut)
        return depth.keep_around_cut(distances, cut), {"angular_distances": distances}
    evaluate = calibration.validation_loss(source, drawn)
    removals = depth.greedy_removals(layers, keep, evaluate)
    gone = {removal.block for removal in removals}
    trail = [{"block": removal.block, "validation_loss": removal.loss} for removal in removals]
    scores = {"validation_loss_before": evaluate(range(layers)), "removals": trail}
    return [block for block in range(layers) if block not in gone], scores
