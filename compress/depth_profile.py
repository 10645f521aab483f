"""The stage `depth-profile`: which blocks of a body matter on this data, and what quality each depth has."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compress.prune_depth import NO_BLOCKS, Importance
from compress.starts import Init, start_problem
from recommender.errors import InputError
from recommender.models.config import BODILESS, LlmConfig
from recommender.quantization_scheme import LEAVES_GRID
from recommender.stage import Bound, Context, OneSourceConfig, Outputs, Shape
from recommender.training.config import TrainSettings

if TYPE_CHECKING:
    from recommender.checkpoint import CheckpointInfo
    from recommender.profile import Depth, DepthProfile


class DepthProfileConfig(TrainSettings, OneSourceConfig):
    """Measure a checkpoint's body by depth; the test part is never looked at.

    ```yaml
    - {stage: depth-profile, of: teacher, as: profile, keep: [1, 2, 4, 8], retrain: true, epochs: 6}
    ```

    The options of training count where `retrain` is true; `validation_users` always does.
    """

    distributed: ClassVar[bool] = True

    stage: Literal["depth-profile"] = "depth-profile"
    of: str = Field(description="the checkpoint to profile")
    as_: str = Field(alias="as", description="name of the profile, for `profiles` of a bench")
    keep: tuple[Annotated[int, Field(ge=1, strict=True)], ...] | None = Field(
        None, description="numbers of blocks to look at closely; null: 1, 2, 4, ... and all"
    )
    retrain: bool = Field(
        False, description="cut to each depth of `keep` and train again: slow, but what decides"
    )
    importance: Importance = Field("first", description="retrain: which blocks stay, as in prune-depth")
    init: Init = Field("teacher", description="retrain: what the training starts from, as in prune-depth")
    calibration_users: int = Field(
        1024, ge=1, description="users whose training histories and next items are looked at"
    )

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A list of depths that makes no sense or goes too deep, a source that has no blocks."""
        source = known.get(self.of)
        if source is not None and isinstance(source.model, BODILESS):
            return [("of", NO_BLOCKS.format(name=self.of))]
        if source is not None and source.quantized is not None:
            return [("of", LEAVES_GRID.format(name=self.of, scheme=source.quantized))]
        lost = None if source is None else start_problem(self.init, source.model, source.narrowed)
        if self.retrain and lost:
            return [("init", lost)]
        wrong = depths_problem(self.keep, None if source is None else source.layers, self.of)
        found = [("keep", wrong)] if wrong else []
        suffix = source is not None and isinstance(source.model, LlmConfig) and source.model.suffix
        if self.retrain and suffix and self.positions != "last":
            found.append(("positions", SUFFIX))
        return found

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """A profile."""
        return Shape("profile")


SUFFIX = "with a prompt suffix only the last position reads the whole prompt: set positions to last"


def depths_problem(keep: Sequence[int] | None, layers: int | None, name: str) -> str | None:
    """What is wrong with a list of depths of a body of `layers` blocks (None: not known yet), or None."""
    if keep is None:
        return None
    if not keep:
        return "an empty list names no depth; null stands for 1, 2, 4, ... and all"
    if repeated := sorted({depth for depth in keep if keep.count(depth) > 1}):
        return f"{repeated[0]} blocks are listed more than once"
    if layers and (beyond := [depth for depth in keep if depth > layers]):
        return f"cannot keep {beyond[0]} of the {layers} blocks of {name!r}"
    return None


def doubling(layers: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all."""
    return (*(2**power for power in range(layers.bit_length()) if 2**power < layers), layers)


def run(config: DepthProfileConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Measure, train again where asked, and write `profile/` (profile.json, profile.md, plan.yaml).

    What is finished lies in `context.scratch`: a killed run goes on within the training it was in. Metrics:
    the plan, and `training`, what each training came to. Checkpoints of the trainings are not kept. Raises
    InputError for a source without blocks or of another catalogue, and for depths that it has not.
    """
    from compress.depth_pages import plan_text, profile_text, suggestion
    from recommender.checkpoint import read_info
    from recommender.files import write_json, write_text

    source = inputs[config.of]
    info = read_info(source.path)
    _check(config, info)
    profile = _measured(config, source, info, context)
    trained, training = _trained(config, source, info, profile, context)
    profile = profile.model_copy(update={"depths": [*profile.depths, *trained]})
    folder, data = context.folder / "profile", str(context.prepared.meta["name"])
    chosen = suggestion(profile)
    write_json(folder / "profile.json", profile.model_dump(mode="json"))
    write_text(folder / "profile.md", profile_text(profile, data))
    write_text(folder / "plan.yaml", plan_text(profile, chosen, data))
    context.progress("note", {"text": f"suggested: keep {chosen.kept}; profile.md says why"})
    return Outputs(
        {
            "blocks": profile.blocks,
            "validation_loss": profile.validation_loss,
            "greedy": [removal.block for removal in profile.greedy],
            "plan": chosen.model_dump(mode="json"),
            "training": training,
        }
    )


def _check(config: DepthProfileConfig, info: "CheckpointInfo") -> None:
    """The checks of `problems`, now that the checkpoint can be read. Raises InputError with the first."""
    layers = info.blocks.get("user")
    source = Shape(
        "checkpoint",
        layers,
        info.model_config,
        narrowed="width" in info.about,
        quantized=info.quantized,
    )
    for field, wrong in config.problems({config.of: source}):
        raise InputError(wrong, where=f"depth-profile.{field}")
    if not layers:
        raise InputError(NO_BLOCKS.format(name=config.of), where="depth-profile.of")


def _measured(
    config: DepthProfileConfig, source: Bound, info: "CheckpointInfo", context: Context
) -> "DepthProfile":
    """All that needs no training: measured by the first process, or taken from an earlier, killed run."""
    from compress.depth_measures import measure
    from compress.depth_retraining import by_first_process
    from recommender.checkpoint import load_checkpoint
    from recommender.files import read_json, write_json
    from recommender.profile import DepthProfile

    record = context.scratch / "measured.json"

    def one() -> "DepthProfile":
        if record.is_file():
            context.progress("note", {"text": "measured before the interruption"})
            return DepthProfile.model_validate(read_json(record))
        model = load_checkpoint(source.path, prepared=context.prepared, device=context.device)
        found = measure(
            model,
            context,
            of=config.of,
            body_parameters=info.body_parameters,
            keep=config.keep or doubling(info.blocks["user"]),
            calibration_users=config.calibration_users,
            validation_users=config.validation_users,
        )
        write_json(record, found.model_dump(mode="json"))
        return found

    return by_first_process(one)


def _trained(
    config: DepthProfileConfig,
    source: Bound,
    info: "CheckpointInfo",
    profile: "DepthProfile",
    context: Context,
) -> tuple[list["Depth"], dict[str, Any]]:
    """Each depth of `keep` trained again, shallowest first, and what the trainings came to."""
    from compress.depth_measures import kept_by
    from compress.depth_retraining import retrained

    depths: list[Depth] = []
    training: dict[str, Any] = {}
    for blocks in sorted(config.keep or doubling(profile.blocks)) if config.retrain else ():
        kept = kept_by(config.importance, blocks, profile)
        depth, fitted = retrained(
            source.path,
            info,
            kept,
            order=config.importance,
            init=config.init,
            settings=config,
            context=context,
        )
        depths.append(depth)
        training[str(blocks)] = fitted
    return depths, training
