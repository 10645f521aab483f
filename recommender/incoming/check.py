"""Whether an imported model recommends at all: ranked on validation users, on the spot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from recommender.data.config import Section
from recommender.errors import GateError, InputError
from recommender.models.interface import SequentialRecommender
from recommender.models.popularity import Popularity
from recommender.stage import Context
from recommender.training.validation import validation_quality

Config = TypeVar("Config", bound=Section)

NEAR = 1.02
"""A model that beats popularity by less than this factor has not been shown to beat it."""


def check_quality(
    model: SequentialRecommender,
    context: Context,
    *,
    users: int | None,
    expected: float | None,
    doubt: str,
) -> dict[str, Any]:
    """HR@10, NDCG@10 and MRR of the model, NDCG@10 of popularity, and a warning where it is not above that.

    `doubt`: what the warning says may be wrong. Raises GateError when NDCG@10 is below `expected`.
    """
    counts = torch.from_numpy(context.prepared.train_counts(context.split))
    popularity = Popularity(n_items=model.n_items, max_length=model.max_length, counts=counts)
    floor = validation_quality(popularity.to(context.device), context, users)["ndcg@10"]
    quality = validation_quality(model.to(context.device), context, users)
    ndcg = quality["ndcg@10"]
    if expected is not None and ndcg < expected:
        raise GateError(
            f"validation NDCG@10 is {ndcg:.4f}, not the {expected:g} that was expected (popularity: "
            f"{floor:.4f})",
            where="import.expect_ndcg",
            fix=doubt,
        )
    found: dict[str, Any] = {**quality, "popularity_ndcg@10": floor}
    context.progress(
        "note", {"text": "validation  ", **{key: f"{value:.4f}" for key, value in found.items()}}
    )
    if ndcg <= NEAR * floor:
        found["warning"] = f"NDCG@10 {ndcg:.4f} is not above that of popularity, {floor:.4f}: {doubt}"
        context.progress("note", {"text": f"WARNING: {found['warning']}"})
    return found


def note_window(model: SequentialRecommender, context: Context) -> None:
    """Tell where the model could read more of a history than it is given."""
    reads, given = model.max_length, context.data.max_length
    if reads > given:
        text = f"it could read {reads} items, but is given {given}, here and in the bench: data.max_length"
        context.progress("note", {"text": text})


def with_sizes(kind: type[Config], values: Mapping[str, Any], file: Path) -> Config:
    """The config of a model that has the sizes of a file. Raises InputError for sizes that it forbids."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "its sizes"
        raise InputError(
            f"its {name} is {first['input']!r}, which no model here can have: {first['msg']}", where=str(file)
        ) from error
