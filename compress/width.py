"""The stage `prune-width`: make a recommender's decoder narrower, with the weights that matter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from compress.narrowing.layout import (
    Amount,
    Structure,
    Widths,
    aimed_at,
    family_of,
    family_problem,
    targets_problem,
    widths_of,
    with_widths,
)
from recommender.errors import InputError
from recommender.models.config import BODILESS, LlmConfig, ModelConfig
from recommender.quantization_scheme import LEAVES_GRID
from recommender.sparsity import noted
from recommender.stage import Bound, Context, OneSourceConfig, Outputs, Shape, lasting

if TYPE_CHECKING:
    from torch import Tensor

    from compress.narrowing.activation import Importance
    from compress.narrowing.cut import Kept
    from recommender.checkpoint import CheckpointInfo
    from recommender.models.llm import LlmRecommender

Target = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1, strict=True)]


class PruneWidthConfig(OneSourceConfig):
    """Keep some neurons, heads or channels of a checkpoint's decoder and drop the others.

    ```yaml
    - {stage: prune-width, of: pruned, as: narrow, ffn: 0.5, heads: 4, importance: activation}
    ```
    """

    stage: Literal["prune-width"] = "prune-width"
    of: str = Field(description="the checkpoint to prune")
    as_: str = Field(alias="as", description="name of the pruned checkpoint")
    ffn: Target | None = Field(
        None, description="neurons of each block's feed-forward that stay: a number, or a share as 0.5"
    )
    heads: Target | None = Field(
        None, description="attention heads of each block that stay; as many in every key/value group"
    )
    kv_heads: Target | None = Field(
        None,
        description="key/value heads of each block that stay; null: all where heads share them, else one per "
        "head",
    )
    hidden: Target | None = Field(None, description="channels of the stream that stay, the same everywhere")
    importance: Literal["activation", "taylor", "taylor-second"] = Field(
        "activation",
        description="what decides: how large activations are (Minitron), or what the loss would lose "
        "(LLM-Pruner; second: one backward pass per user)",
    )
    calibration_users: int = Field(1024, ge=1, description="users whose training histories are looked at")

    @model_validator(mode="after")
    def _something_to_cut(self) -> Self:
        if not self.targets():
            raise ValueError("nothing to cut: give at least one of ffn, heads, kv_heads, hidden")
        return self

    def targets(self) -> dict[str, Amount]:
        """What is to stay, by the names of `Widths`."""
        named = ((name, getattr(self, name)) for name in ("ffn", "heads", "kv_heads", "hidden"))
        return {name: amount for name, amount in named if amount is not None}

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """A model that is no decoder, or widths that its family cannot have."""
        model = known[self.of].model if self.of in known else None
        if model is not None and not isinstance(model, LlmConfig):
            return [("of", not_a_decoder(self.of, model))]
        if self.of in known and (scheme := known[self.of].quantized) is not None:
            return [("of", LEAVES_GRID.format(name=self.of, scheme=scheme))]
        if self.of in known and known[self.of].sparsity is not None:
            return [("of", zeros_first(self.of))]
        if model is None:
            return []
        if (family := family_of(model)) and (wrong := family_problem(family)):
            return [("of", wrong)]
        if (before := widths_of(model)) is None:
            return []
        found = targets_problem(before, aimed_at(before, self.targets()), model.family)
        return [found] if found else []

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """The source with other widths, where they are known before running."""
        source = known.get(self.of, Shape("checkpoint"))
        model = source.model
        if isinstance(model, LlmConfig) and (before := widths_of(model)):
            after = aimed_at(before, self.targets())
            if not targets_problem(before, after, model.family):  # else it is told once, not downstream too
                model = with_widths(model, after)
        return Shape("checkpoint", layers=source.layers, model=model, narrowed=True)


def not_a_decoder(name: str, model: ModelConfig) -> str:
    """What is said of a model without a Hugging Face decoder."""
    if isinstance(model, BODILESS):
        return f"{name!r} is {model.kind}, which has no blocks to narrow"
    return (
        f"{name!r} is {model.kind}, whose feed-forward is as wide as its item vectors by construction, so it "
        "cannot be narrowed: train one with a smaller hidden size, or cut its depth"
    )


def zeros_first(name: str) -> str:
    """What is said of a checkpoint whose weights have been pruned one by one."""
    return f"{name!r} is sparse, and a cut in width would break the pattern of its zeros: sparsify after it"


def run(config: PruneWidthConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Score, choose, cut, save to `context.folder / "checkpoint"`; who stays is written to `kept.json`.

    Metrics: the widths and parameters before and after, and which part of the importance stays. Raises
    InputError when the source is no decoder of a known family, cannot have these widths, is sparse, holds
    NaN, or was trained on other data; the source itself is only read.
    """
    from compress.narrowing.cut import narrow, removed_parameters
    from recommender.checkpoint import read_info, save_checkpoint
    from recommender.files import write_json

    info = read_info(inputs[config.of].path)
    model, before, after = _opened(config, info, inputs[config.of], context)
    importance = measure(config, model, context)
    kept = choose(importance, before, after)
    removed = removed_parameters(model, kept)
    narrow(model, kept, after)
    context.progress("note", {name: f"{old} -> {new}" for name, old, new in _changes(before, after)})
    assert isinstance(info.model_config, LlmConfig)
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=with_widths(info.model_config, after),
        split=context.evaluation.split,
        about={**lasting(info.about), **config.named, "width": after._asdict()},
    )
    write_json(context.folder / "kept.json", _as_lists(kept))
    narrowed = read_info(context.folder / "checkpoint")
    return Outputs(
        {
            "width_before": before._asdict(),
            "width_after": after._asdict(),
            "importance_kept": _shares(importance, kept),
            "parameters_before": info.parameters,
            "parameters_after": narrowed.parameters,
            "removed_parameters": removed,
            "body_parameters_before": info.body_parameters,
            "body_parameters_after": narrowed.body_parameters,
        }
    )


def _changes(before: Widths, after: Widths) -> list[tuple[str, int, int]]:
    both = zip(Widths._fields, before, after, strict=True)
    return [(name, old, new) for name, old, new in both if old != new]


def _opened(
    config: PruneWidthConfig, info: "CheckpointInfo", source: Bound, context: Context
) -> tuple["LlmRecommender", Widths, Widths]:
    """The model, and its widths before and after. Raises InputError for all that can be wrong with them."""
    from compress.finite import check_finite
    from compress.narrowing.cut import widths_in
    from recommender.checkpoint import check_trained_on, load_checkpoint
    from recommender.models.llm import LlmRecommender
    from recommender.models.zeros import check_zeros

    if not isinstance(info.model_config, LlmConfig):
        raise InputError(not_a_decoder(config.of, info.model_config), where="prune-width.of")
    if info.quantized is not None:
        raise InputError(LEAVES_GRID.format(name=config.of, scheme=info.quantized), where="prune-width.of")
    check_trained_on(info, context.prepared, context.evaluation.split, str(source.path))
    model = load_checkpoint(source.path, prepared=context.prepared, device=context.device)
    if (note := noted(info.about, str(source.path))) is not None:
        check_zeros(model, note, str(source.path))  # what is not there could not be broken either
        raise InputError(zeros_first(config.of), where="prune-width.of")
    assert isinstance(model, LlmRecommender)
    before = widths_in(model.body.config)
    after = aimed_at(before, config.targets())
    if wrong := targets_problem(before, after, model.body.config.model_type):
        raise InputError(wrong[1], where=f"prune-width.{wrong[0]}")
    check_finite(model, config.of, where="prune-width.of")
    return model, before, after


def measure(config: PruneWidthConfig, model: "LlmRecommender", context: Context) -> "Importance":
    """The scores that `importance` asks for, from a seeded sample of training histories.

    Raises InputError where scores are not finite, which would rank at random.
    """
    from compress import calibration
    from compress.finite import check_seen
    from compress.narrowing.activation import activation_importance
    from compress.narrowing.cut import layout_of, widths_in
    from compress.narrowing.taylor import taylor_importance

    drawn = calibration.sample(
        context.prepared,
        context.split,
        users=config.calibration_users,
        max_length=model.max_length,
        seed=context.seed,
    )
    layout, widths = layout_of(model.body.config), widths_in(model.body.config)
    if config.importance == "activation":
        found = activation_importance(model, layout, widths, drawn)
    else:
        order = 1 if config.importance == "taylor" else 2
        found = taylor_importance(model, layout, widths, drawn, order=order)
    for number, scores in enumerate(found.blocks):
        for structure, each in scores.items():
            what = f"scores of {structure} in block {number} of {config.of!r}"
            check_seen(each, what, where="prune-width.of")
    check_seen(found.hidden, f"scores of the channels of {config.of!r}", where="prune-width.of")
    return found


def choose(importance: "Importance", before: Widths, after: Widths) -> "Kept":
    """The members of highest score, `after` in number; every key/value head keeps as many heads."""
    from compress.narrowing.cut import Kept
    from compress.narrowing.scores import keep_heads, keep_top

    blocks: list[dict[Structure, Tensor]] = []
    for scores in importance.blocks:
        heads, kv = keep_heads(
            scores["heads"], scores["kv"], keep_heads=after.heads, keep_groups=after.kv_heads
        )
        blocks.append({"ffn": keep_top(scores["ffn"], after.ffn), "heads": heads, "kv": kv})
    return Kept(keep_top(importance.hidden, after.hidden), blocks)


def _shares(importance: "Importance", kept: "Kept") -> dict[str, Any]:
    """The part of all scores that stays: of the stream, and of each block's neurons and heads."""
    from compress.narrowing.scores import share_kept

    pairs = list(zip(importance.blocks, kept.blocks, strict=True))
    return {
        "hidden": share_kept(importance.hidden, kept.hidden),
        "ffn": [share_kept(scores["ffn"], stays["ffn"]) for scores, stays in pairs],
        "heads": [share_kept(scores["heads"], stays["heads"]) for scores, stays in pairs],
    }


def _as_lists(kept: "Kept") -> dict[str, Any]:
    blocks = [{name: members.tolist() for name, members in block.items()} for block in kept.blocks]
    return {"hidden": kept.hidden.tolist(), "blocks": blocks}
