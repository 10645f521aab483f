"""From a batch of histories to the table of what an artifact recommends."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from export.runtime import ArtifactError, TopK
from export.score.known import Batch, calls
from recommender.errors import InputError
from recommender.scoring import HistoryArrays

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
JOINT = ","  # between the ids of a list in CSV and TSV


class Answering(Protocol):
    """What scoring reads of an open artifact (`export.runtime.Artifact`)."""

    manifest: dict[str, Any]
    variant: str
    limit: int  # the longest list that it answers
    max_length: int  # the longest history that it reads
    users_per_call: int | None  # at most so many share the scales of an 8-bit body; None: nothing is shared

    @property
    def item_ids(self) -> Sequence[str]:
        """Ids by row, row 1 first."""
        ...

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best rows of each history; row 0 where fewer are left."""
        ...


class Form(NamedTuple):
    """How answers are written."""

    kind: str  # csv | tsv | jsonl | parquet
    lists: bool  # one row per user, in place of one per recommended item


def answers(
    artifact: Answering, batch: Batch, ids: pl.Series, k: int, form: Form, *, mask_seen: bool
) -> pl.DataFrame:
    """Score a batch. `ids` [n_items]: the artifact's item ids. Raises InputError when it cannot answer.

    One row per recommended item: user_id, rank (from 1), item_id, score; none for users without a history.
    With `form.lists` one row per user: user_id, item_ids, scores; empty lists for users without a history.
    """
    items = np.zeros((len(batch.users), k), np.int64)
    scores = np.zeros((len(batch.users), k), np.float32)
    for places, arrays in calls(batch, artifact.max_length, mask_seen=mask_seen):
        try:
            best = artifact.top_k(arrays, k)
        except ArtifactError as error:
            raise InputError(str(error), where="artifact") from error
        items[places], scores[places] = best.items, best.scores
    return (
        _lists(batch.users, items, scores, ids, form)
        if form.lists
        else _rows(batch.users, items, scores, ids)
    )


def no_answers(form: Form) -> pl.DataFrame:
    """The empty table, with the columns that `answers` gives."""
    nobody, ids = pl.Series("user_id", [], dtype=pl.String), pl.Series("item_id", [], dtype=pl.String)
    items, scores = np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32)
    return _lists(nobody, items, scores, ids, form) if form.lists else _rows(nobody, items, scores, ids)


def _rows(users: pl.Series, items: Int64, scores: Float32, ids: pl.Series) -> pl.DataFrame:
    filled = items > 0
    owners, ranks = np.nonzero(filled)
    columns = {
        "user_id": users.gather(owners),
        "rank": pl.Series(ranks + 1, dtype=pl.Int32),
        "item_id": ids.gather(items[filled] - 1),
        "score": pl.Series(scores[filled]),
    }
    return pl.DataFrame(columns)


def _lists(users: pl.Series, items: Int64, scores: Float32, ids: pl.Series, form: Form) -> pl.DataFrame:
    filled = pl.Series((items > 0).ravel())
    named = ids.gather(pl.Series(np.maximum(items.ravel() - 1, 0))) if len(ids) else ids
    frame = pl.DataFrame(
        {
            "user_id": users,
            "item_ids": _listed(named, filled, items.shape),
            "scores": _listed(pl.Series(scores.ravel()), filled, items.shape),
        }
    )
    if form.kind in ("csv", "tsv"):  # which know no lists
        joined = pl.col("scores").cast(pl.List(pl.String)).list.join(JOINT)
        frame = frame.with_columns(pl.col("item_ids").list.join(JOINT), joined)
    return frame


def _listed(values: pl.Series, filled: pl.Series, shape: tuple[int, ...]) -> pl.Series:
    """Flat values [U * k] as U lists of those that are filled."""
    kept = values.to_frame("v").select(pl.when(filled).then(pl.col("v")))["v"]
    return kept.reshape(shape).arr.to_list().list.drop_nulls()
