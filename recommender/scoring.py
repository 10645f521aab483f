"""What can be asked of anything that recommends: numpy in, numpy out, no torch.

A checkpoint, an ONNX session, an engine and an artifact all answer as a `Scorer`; the bench, the parity gate
and the command line know nothing else of them.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

TABLE_BLOCK = 128
"""An artifact stores its item table in whole blocks of so many rows; its head sorts blocks by maxima."""


def whole_blocks(rows: int, block: int = TABLE_BLOCK) -> int:
    """Rows of a stored item table: these, filled up to whole blocks."""
    return -(-rows // block) * block


class HistoryArrays(NamedTuple):
    """One padded batch of histories, as arrays (the numpy twin of `recommender.models.interface.History`)."""

    items: Int64  # [B, L] rows, left-padded with 0
    seen: Int64 | None = None  # [B, S] rows that must not come back, padded with 0
    times: Int64 | None = None  # [B, L] unix seconds


class TopK(NamedTuple):
    """The best k rows per user, best first; equal scores stand in ascending row order."""

    items: Int64  # [B, k]
    scores: Float32  # [B, k]


class Scorer(Protocol):
    """Anything that recommends. Seen rows and row 0 never come back."""

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best rows of each history; `items` [B, k], `scores` [B, k].

        Where fewer than k items are left to recommend, the list ends with row 0 and -inf.
        """
        ...


@runtime_checkable
class RankScorer(Protocol):
    """A scorer that also knows exact ranks in the whole catalogue."""

    def ranks(
        self, history: HistoryArrays, targets: Int64, *, ties: str = "pessimistic", among: Int64 | None = None
    ) -> Int64:
        """0-based rank [B] of each target row [B] in the catalogue, or among the rows `among` [B, n] only.

        Ties are `pessimistic` (count against us) or `by-row`.
        """
        ...


@dataclass(frozen=True)
class ScorerRef:
    """How to open a scorer, as plain data, so that another process (or another layer) can do it.

    `opener` is `package.module:function`; it is written by recpress, never read from a recipe. The function
    is called as `function(path, **options)`.
    """

    name: str
    kind: str  # checkpoint | artifact
    runtime: str  # torch | onnxruntime | ...
    path: Path
    opener: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None  # the only one that it runs on; None: whichever is asked for

    def open(self, **more: Any) -> Scorer:
        """Open the scorer; `more` overrides the options (device, threads)."""
        module, function = self.opener.split(":")
        scorer: Scorer = getattr(importlib.import_module(module), function)(
            self.path, **{**self.options, **more}
        )
        return scorer


def pad_left(histories: Sequence[Int64 | list[int]], length: int | None = None) -> Int64:
    """Stack histories of rows, newest last, into [B, L] with zeros in front; the oldest are cut beyond L."""
    width = max((len(history) for history in histories), default=1) if length is None else length
    out = np.zeros((len(histories), max(width, 1)), dtype=np.int64)
    for row, history in enumerate(histories):
        kept = history[-width:] if width else []
        if len(kept):
            out[row, -len(kept) :] = kept
    return out
