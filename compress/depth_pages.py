"""A depth profile for people: tables to read, and the stage that cuts, to edit."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import yaml

from recommender.profile import Cut, Depth, DepthProfile

ENOUGH = 0.97
"""Share of the whole body's NDCG@10 that the suggested depth has at least; what `gate` asks, too."""

METRICS = ("ndcg@10", "hr@10", "mrr")

PAGE = """# Depth profile of {of}

{blocks} blocks, measured on {data}: training histories of {users} users, quality on the validation
part{people} (full ranking; the test part was not looked at), seed {seed}.

## Which blocks do least

Block influence is 1 - mean cosine between the streams before and after a block: near 0, the block hardly
turns them. `gone`: the place at which the greedy search drops the block, then the validation loss without it
and all before it (whole body: {loss:.4f}); the last one standing has none.

{influence}

## The best cut of each length

The contiguous blocks whose removal turns the stream at the last position least, in half turns: 0 the same
direction, 0.5 orthogonal. All {cuts} cuts are in profile.json.

{best}

## Quality by depth

Not trained: the body is cut and read through its final norm. `share` is of the NDCG@10 of the whole body: as
given, or for trained rows trained again where that was measured and is better. Trained models were chosen by
their validation NDCG@10 over the epochs, so that figure flatters them a little.{control}

{depths}
"""


NO_CONTROL = """
The whole body was not trained again: what the trained rows gain may be the longer training, not the cut. Put
{blocks} into `keep` to tell."""


def profile_text(profile: DepthProfile, data: str) -> str:
    """The profile as Markdown."""
    return PAGE.format(
        of=profile.of,
        blocks=profile.blocks,
        data=data,
        users=profile.users,
        people="" if profile.validation_users is None else f" of {profile.validation_users} users",
        seed=profile.seed,
        loss=profile.validation_loss,
        influence=_table(("block", "influence", "gone", "loss then"), _influence_rows(profile)),
        cuts=len(profile.cuts),
        best=_table(("length", "blocks", "distance"), _cut_rows(profile)),
        control="" if _has_control(profile) else NO_CONTROL.format(blocks=profile.blocks),
        depths=_table(
            ("blocks", "kept", "chosen by", "trained", *METRICS, "share", "body parameters", "s/epoch"),
            _depth_rows(profile),
        ),
    )


def plan_text(profile: DepthProfile, chosen: Depth, data: str) -> str:
    """The stage `prune-depth` as YAML, with what was measured of each depth in comments."""
    data = " ".join(data.split())  # a comment ends with its line
    init = (chosen.init or "teacher") if chosen.retrained else "teacher"
    stage = {"stage": "prune-depth", "of": profile.of, "as": "pruned", "keep": chosen.kept, "init": init}
    after = "trained again" if chosen.retrained else "without training"
    then = ["# Follow it with `distill` (method: none trains alone), which the figure counts on."]
    lines = [
        f"# Depth profile of {profile.of} ({profile.blocks} blocks) on {data}. Paste this into the `stages:`",
        "# of a recipe and edit `keep`, the blocks that stay. NDCG@10 on validation, share of the whole:",
        *(f"#   {_measured(depth, profile)}" for depth in _agreed(profile.depths)),
        f"# Below: the fewest blocks with {ENOUGH:.0%} of the whole ({after}), or the best where none has.",
        *(then if chosen.retrained else ()),
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump([stage], sort_keys=False, default_flow_style=None)


def suggestion(profile: DepthProfile) -> Depth:
    """The fewest blocks that keep `ENOUGH` of the whole body's NDCG@10, of equal ones the best; the best
    depth where none does. Trained depths only, where there are any.
    """
    trained = [depth for depth in profile.depths if depth.retrained] or profile.depths
    enough = [depth for depth in trained if _ndcg(depth) >= ENOUGH * standard(profile, depth)]
    if enough:
        return min(enough, key=lambda depth: (depth.blocks, -_ndcg(depth)))
    return max(trained, key=_ndcg)


def standard(profile: DepthProfile, depth: Depth) -> float:
    """NDCG@10 of the whole body that a depth is held against.

    As given, for a depth that was only cut. Where one was trained again and so was the whole body, the better
    of the two: more training may lift both, and that is no merit of the cut.
    """
    return max(
        _ndcg(each)
        for each in profile.depths
        if each.blocks == profile.blocks and (depth.retrained or not each.retrained)
    )


def _has_control(profile: DepthProfile) -> bool:
    """Whether nothing was trained, or the whole body too."""
    trained = [each.blocks for each in profile.depths if each.retrained]
    return not trained or profile.blocks in trained


def _ndcg(depth: Depth) -> float:
    return depth.quality["ndcg@10"]


def _share(depth: Depth, profile: DepthProfile) -> str:
    full = standard(profile, depth)
    return f"{_ndcg(depth) / full:.1%}" if full else ""


def _measured(depth: Depth, profile: DepthProfile) -> str:
    how = f"{depth.order}, trained from {depth.init}" if depth.retrained else f"{depth.order}"
    return f"keep: {depth.kept}  {_ndcg(depth):.4f}  {_share(depth, profile)}  ({how})"


def _agreed(depths: Sequence[Depth]) -> list[Depth]:
    """Orders that agree as one depth, their names joined; fewest blocks first, trained ones after the cut."""
    found: dict[tuple[Any, ...], list[Depth]] = {}
    for depth in depths:
        found.setdefault((depth.blocks, depth.retrained, *depth.kept), []).append(depth)
    return [
        same[0].model_copy(update={"order": ", ".join(str(each.order) for each in same)})
        for _, same in sorted(found.items())
    ]


def _influence_rows(profile: DepthProfile) -> Iterable[tuple[Any, ...]]:
    gone = {step.block: (place + 1, step.validation_loss) for place, step in enumerate(profile.greedy)}
    for block in sorted(range(profile.blocks), key=lambda block: profile.block_influence[block]):
        place, loss = gone.get(block, ("", None))
        yield block, f"{profile.block_influence[block]:.4f}", place, "" if loss is None else f"{loss:.4f}"


def _cut_rows(profile: DepthProfile) -> Iterable[tuple[Any, ...]]:
    def length(cut: Cut) -> int:
        return cut.length

    for size, cuts in groupby(sorted(profile.cuts, key=length), key=length):
        best = min(cuts, key=lambda cut: (cut.distance, -cut.first))
        yield size, spans(range(best.first, best.first + size)), f"{best.distance:.4f}"


def _depth_rows(profile: DepthProfile) -> Iterable[tuple[Any, ...]]:
    for depth in sorted(_agreed(profile.depths), key=lambda depth: depth.retrained):
        seconds = "" if depth.seconds_per_epoch is None else f"{depth.seconds_per_epoch:.1f}"
        quality = (f"{depth.quality[name]:.4f}" for name in METRICS)
        trained = f"from {depth.init}" if depth.retrained else "no"
        yield (
            *(depth.blocks, spans(depth.kept), depth.order, trained, *quality, _share(depth, profile)),
            *(f"{depth.body_parameters:,}", seconds),
        )


def spans(blocks: Iterable[int]) -> str:
    """`0-3, 5` for ascending block numbers."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
