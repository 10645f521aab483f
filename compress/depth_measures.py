"""What can be measured of a body by depth without training it: scores, choices, and quality of the cut body.

A cut body ends in the final norm, as a pruned checkpoint would. (SLMRec's inference-time study reads raw
streams with the map trained for normed ones, so part of its loss is no loss of blocks.)
"""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from compress import calibration, depth
from compress.initial import parameters_of
from compress.prune_depth import Importance
from recommender.errors import InputError
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.profile import Cut, Depth, DepthProfile, Removal
from recommender.stage import Context
from recommender.training.validation import validation_quality

ORDERS: tuple[Importance, ...] = get_args(Importance)


class OnlyBlocks(SequentialRecommender):
    """A model that runs some of another one's blocks; weights are shared, nothing is copied."""

    def __init__(self, whole: SequentialRecommender, kept: Sequence[int]) -> None:
        super().__init__()
        self.whole, self.kept = whole, list(kept)
        self.n_items, self.max_length, self.objective = whole.n_items, whole.max_length, whole.objective

    def hidden(
        self, history: History, *, blocks: Sequence[int] | None = None, last_only: bool = False
    ) -> Hidden:
        """See `SequentialRecommender.hidden`; `blocks` counts among the kept ones."""
        chosen = self.kept if blocks is None else [self.kept[block] for block in blocks]
        return self.whole.hidden(history, blocks=chosen, last_only=last_only)

    def project(self, states: Tensor) -> Tensor:
        """As the whole model."""
        return self.whole.project(states)

    def item_table(self) -> Tensor:
        """As the whole model."""
        return self.whole.item_table()


def measure(
    model: SequentialRecommender,
    context: Context,
    *,
    of: str,
    body_parameters: int,
    keep: Sequence[int],
    calibration_users: int,
    validation_users: int | None,
) -> DepthProfile:
    """Scores of all blocks and cuts on training histories; quality of the cut body on the validation part.

    Depths: every one for `first`, those of `keep` (and the whole body) for every other order. Raises
    InputError when nobody has a validation item, StageError on NaN.
    """
    layers, everyone = len(model.bodies()["user"].blocks), len(context.split.targets("valid")[0])
    drawn = calibration.sample(
        context.prepared,
        context.split,
        users=calibration_users,
        max_length=model.max_length,
        seed=context.seed,
    )
    if not len(drawn.targets):
        raise InputError("nobody has a validation item to measure with", where="evaluation.split")
    context.progress("note", {"text": f"influence and angular distance of {layers} blocks"})
    influence = depth.block_influence(calibration.streams(model, drawn))
    angles = depth.every_cut(calibration.streams(model, drawn))
    whole_loss, removals = _greedy(model, drawn, layers, context)
    profile = DepthProfile(
        of=of,
        blocks=layers,
        users=len(drawn.targets),
        seed=context.seed,
        block_influence=influence,
        cuts=[
            Cut(first=first, length=length, distance=distance)
            for length, distances in angles.items()
            for first, distance in enumerate(distances)
        ],
        greedy=[Removal(block=step.block, validation_loss=step.loss) for step in removals],
        validation_loss=whole_loss,
        depths=[],
        validation_users=everyone if validation_users is None else min(everyone, validation_users),
        catalogue_digest=context.prepared.catalogue_digest,
    )
    depths = _depths(model, profile, keep, context, validation_users, body_parameters)
    return profile.model_copy(update={"depths": depths})


def kept_by(order: Importance, keep: int, profile: DepthProfile) -> list[int]:
    """The blocks that stay when this order chooses `keep` of them: those that prune-depth would keep."""
    layers, cut = profile.blocks, profile.blocks - keep
    match order:
        case "first":
            return depth.keep_first(layers, keep)
        case "uniform":
            return depth.keep_uniform(layers, keep)
        case "block-influence":
            return depth.keep_influential(profile.block_influence, keep)
        case "angular":
            distances = [each.distance for each in profile.cuts if each.length == cut]
            return depth.keep_around_cut(distances, cut) if cut else depth.keep_first(layers, keep)
        case "greedy":
            gone = {removal.block for removal in profile.greedy[:cut]}
            return [block for block in range(layers) if block not in gone]


def _greedy(
    model: SequentialRecommender, drawn: calibration.Calibration, layers: int, context: Context
) -> tuple[float, list[depth.Removal]]:
    """(loss of the whole body, the order in which blocks go until one is left)."""
    loss_of = calibration.validation_loss(model, drawn)
    total, done = layers * (layers + 1) // 2, 0

    def evaluate(kept: Sequence[int]) -> float:
        nonlocal done
        loss, done = loss_of(kept), done + 1
        context.progress("step", {"text": "greedy", "step": done, "total": total, "loss": loss})
        return loss

    context.progress("start", {"text": "greedy", "total": total})
    whole = evaluate(range(layers))
    removals = depth.greedy_removals(layers, 1, evaluate)
    context.progress("done", {})
    return whole, removals


def _depths(
    model: SequentialRecommender,
    profile: DepthProfile,
    keep: Sequence[int],
    context: Context,
    users: int | None,
    body_parameters: int,
) -> list[Depth]:
    """Quality of every choice; orders that agree are measured once."""
    layers = profile.blocks
    close = sorted({*keep, layers})
    choices = [
        (order, tuple(kept_by(order, blocks, profile)))
        for order in ORDERS
        for blocks in (range(1, layers + 1) if order == "first" else close)
    ]
    different = list(dict.fromkeys(kept for _, kept in choices))
    quality: dict[tuple[int, ...], dict[str, float]] = {}
    context.progress("start", {"text": "quality by depth", "total": len(different)})
    for number, kept in enumerate(different):
        quality[kept] = validation_quality(OnlyBlocks(model, kept), context, users)
        step = {"text": "quality by depth", "step": number + 1, "total": len(different)}
        context.progress("step", step | {"ndcg@10": quality[kept]["ndcg@10"]})
    context.progress("done", {})
    return [
        Depth(
            blocks=len(kept),
            kept=list(kept),
            retrained=False,
            quality=quality[kept],
            body_parameters=body_parameters - parameters_of(model, set(range(layers)) - set(kept)),
            order=order,
        )
        for order, kept in choices
    ]
