"""Lists of an artifact against the exact product of user vectors and item table."""

from typing import TYPE_CHECKING

import numpy as np

from export.parity import Agreement, compare
from recommender.errors import GateError
from recommender.scoring import Float32, HistoryArrays, TopK

if TYPE_CHECKING:
    from export.runtime import Artifact

USERS_AT_ONCE, SCORES_AT_ONCE = 64, 4_000_000  # 16 MB of scores


def agreements(
    artifact: "Artifact",
    history: HistoryArrays,
    *,
    atol: float,
    vectors: Float32 | None = None,
    table: Float32 | None = None,
) -> list[Agreement]:
    """How the full lists of an artifact compare with the exact scores, batch by batch.

    `vectors` [B, D]: of the users; None: those of the artifact's own body. `table` [n_items + 1, D]: of the
    items; None: the variant's own. `atol`: margin per unit of a user's largest score. Raises GateError where
    a score leaves the range of float32.
    """
    items = np.asarray(artifact.table) if table is None else table
    size = max(1, min(USERS_AT_ONCE, SCORES_AT_ONCE // (artifact.n_items + 1)))
    found = []
    for start in range(0, len(history.items), size):
        part = slice(start, start + size)
        asked = HistoryArrays(history.items[part], None if history.seen is None else history.seen[part])
        users = artifact.user_vectors(asked) if vectors is None else vectors[part]
        best = TopK(*artifact.top_k(asked, artifact.limit))
        found.append(compare(exact_scores(items, users, asked), best, atol=atol))
    return found


def exact_scores(items: Float32, users: Float32, history: HistoryArrays) -> Float32:
    """[B, n_items + 1] scores of users [B, D] for items [n_items + 1, D].

    -inf for row 0 and what the history masks. Raises GateError where a score leaves the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scores: Float32 = users @ items.T
    if not np.isfinite(scores).all():
        raise GateError(
            "scores of these item vectors leave the range of float32",
            where="item vectors",
            fix="give vectors of the model that this artifact was exported from, as that model holds them",
        )
    scores[:, 0] = -np.inf
    if history.seen is not None:
        np.put_along_axis(scores, history.seen, -np.inf, axis=1)
    return scores
