"""What each candidate recommends to a few test users, by title: numbers hide nonsense, titles do not."""

from collections.abc import Mapping

import numpy as np

from bench.quality import Judged
from bench.report.parts import Sample, Suggestions
from recommender.data.prepared import Prepared, Split

NEWEST = 6
SHOWN = 5


def draw_samples(
    judged: Mapping[str, Judged], prepared: Prepared, split: Split, *, count: int, seed: int
) -> list[Sample]:
    """`count` users drawn without replacement (all, if there are fewer), in the order of their numbers."""
    first = next(iter(judged.values()))
    chosen = np.random.default_rng(seed).permutation(len(first.users))[:count]
    titles = row_titles(prepared)
    return [_sample(int(row), judged, prepared, split, titles) for row in np.sort(chosen)]


def row_titles(prepared: Prepared) -> list[str]:
    """Title of each row (its id where it has none); index 0 is empty."""
    frame = prepared.catalogue.sort("row")
    ids = frame["item_id"].to_list()
    known = frame["title"].to_list() if "title" in frame.columns else [None] * len(ids)
    return ["", *(title or item_id for title, item_id in zip(known, ids, strict=True))]


def _sample(
    row: int, judged: Mapping[str, Judged], prepared: Prepared, split: Split, titles: list[str]
) -> Sample:
    first = next(iter(judged.values()))
    user, target = int(first.users[row]), int(first.targets[row])
    history = prepared.history(user, int(split.test[user]))
    return Sample(
        history=[titles[item] for item in history[-NEWEST:]],
        history_length=len(history),
        next=titles[target],
        suggestions=[_suggestions(name, each, row, titles) for name, each in judged.items()],
    )


def _suggestions(name: str, judged: Judged, row: int, titles: list[str]) -> Suggestions:
    rank = int(judged.ranked.ranks[row])
    lists = judged.ranked.top
    shown = [] if lists is None else [titles[item] for item in lists[row, :SHOWN] if item > 0]
    return Suggestions(candidate=name, titles=shown, rank=rank + 1 if rank >= 0 else None)
