"""One user's recommendations from an artifact, for the command line."""

from collections.abc import Sequence
from pathlib import Path

from export.artifact import open_artifact
from export.runtime import ArtifactError, Recommendation
from recommender.errors import InputError


def recommend(
    artifact: Path,
    history: Sequence[str],
    k: int = 10,
    *,
    variant: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    verify: bool = True,
) -> list[Recommendation]:
    """The k best items after a history of item ids (oldest first): item_id, title, score, row.

    Raises InputError for a broken artifact, unknown items (with the nearest known id), an empty history, or a
    k that the artifact was not exported for.
    """
    opened = open_artifact(artifact, variant=variant, threads=threads, device=device, verify=verify)
    try:
        return opened.recommend(history, k)
    except ArtifactError as error:
        raise InputError(str(error), where="recommend") from error


def split_ids(text: str) -> list[str]:
    """Item ids from one comma-separated option; blanks around them and empty parts are dropped."""
    return [part.strip() for part in text.split(",") if part.strip()]
