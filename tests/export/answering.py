"""An artifact that needs no model, and files of users for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from export.runtime import TopK
from recommender.scoring import HistoryArrays

N_ITEMS = 30


class Circle:
    """Recommends the rows that follow the last one of a history in a circle; seen rows never come back."""

    def __init__(self, n_items: int = N_ITEMS, limit: int = 10, max_length: int = 8, **recipe: Any) -> None:
        self.manifest: dict[str, Any] = {"mask_seen": True, "recipe": {"data": recipe}}
        self.variant = "fp32"
        self.item_ids = [f"i{row}" for row in range(1, n_items + 1)]
        self.limit, self.max_length = limit, max_length
        self.users_per_call: int | None = None
        self.calls: list[tuple[int, int]] = []  # users and width of each

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k next rows; the score falls with the place and tells the history's first visible row."""
        self.calls.append((len(history.items), history.items.shape[1]))
        assert history.items.shape[1] <= self.max_length and (history.items[:, -1] > 0).all()
        rows = (history.items[:, -1:] + np.arange(len(self.item_ids))) % len(self.item_ids) + 1
        if history.seen is not None:
            blocked = (rows[:, :, None] == history.seen[:, None, :]).any(axis=2)
            order = np.argsort(blocked, axis=1, kind="stable")
            rows = np.where(np.take_along_axis(blocked, order, 1), 0, np.take_along_axis(rows, order, 1))
        oldest = (history.items > 0).argmax(axis=1)[:, None]
        scores = -np.arange(k, dtype=np.float32) - np.take_along_axis(history.items, oldest, 1) / 64
        best = rows[:, :k]
        return TopK(best, np.where(best > 0, scores, -np.inf).astype(np.float32))


def made_up(users: int, n_items: int = N_ITEMS, seed: int = 0, longest: int = 12) -> dict[str, list[str]]:
    """Histories of 1 to `longest` item ids by user id."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, users)
    return {
        f"u{number}": [f"i{row}" for row in rng.integers(1, n_items + 1, length)]
        for number, length in enumerate(lengths)
    }


def write_lines(file: Path, histories: dict[str, list[str]]) -> Path:
    """One line per user in the format of the file's name."""
    frame = pl.DataFrame({"user_id": list(histories), "history": list(histories.values())})
    return write(file, frame.with_columns(pl.col("history").cast(pl.List(pl.String))))


def write_log(file: Path, histories: dict[str, list[str]]) -> Path:
    """One row per interaction, with positions."""
    rows = [(user, item, at) for user, items in histories.items() for at, item in enumerate(items)]
    return write(file, pl.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row"))


def write(file: Path, frame: pl.DataFrame) -> Path:
    """Write a table in the format of the file's name."""
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List]
    if file.suffix == ".parquet":
        frame.write_parquet(file, row_group_size=50)
    elif file.suffix == ".jsonl":
        frame.write_ndjson(file)
    else:
        frame = frame.with_columns(pl.col(name).list.join(",") for name in lists)
        compression = "gzip" if file.suffix == ".gz" else "uncompressed"
        frame.write_csv(file, separator="\t" if ".tsv" in file.name else ",", compression=compression)
    return file


def plainly(
    artifact: Circle, histories: dict[str, Sequence[str]], k: int
) -> list[tuple[str, int, str, float]]:
    """What `score` must write, one user after the other."""
    rows = []
    for user, items in histories.items():
        known = np.array([[artifact.item_ids.index(item) + 1 for item in items]], np.int64)
        if known.size:
            best = artifact.top_k(HistoryArrays(known[:, -artifact.max_length :], known), k)
            answer = zip(best.items[0].tolist(), best.scores[0].tolist(), strict=True)
            rows += [
                (user, rank, artifact.item_ids[row - 1], score)
                for rank, (row, score) in enumerate(answer, start=1)
                if row
            ]
    return rows


def rows_of(output: Path) -> list[tuple[Any, ...]]:
    """The rows of an output of any format."""
    if output.suffix in (".parquet", ".pq"):
        frame = pl.read_parquet(output)
    elif output.suffix == ".jsonl":
        frame = pl.read_ndjson(output)
    else:
        frame = pl.read_csv(output, separator="\t" if output.suffix == ".tsv" else ",")
    return frame.rows()


def left_in(folder: Path) -> set[str]:
    """The names of what lies in a folder."""
    return {path.name for path in folder.iterdir()}
