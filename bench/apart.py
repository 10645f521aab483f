"""One candidate in a child of its own, whose calls are taken apart: some plain, some traced, in turn."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from recommender.scoring import HistoryArrays, Scorer, ScorerRef

How = Literal["hooks", "profile"]
LEAST = 3
"""Calls of each kind, however long they take."""

Said = dict[str, Any]


class TakenApart:
    """A scorer and the way to look into its calls; `how` is None where there is none.

    Checkpoints are hooked; what onnxruntime runs is profiled, in a second scorer that is opened for each load
    (a profile ends once, and holds a million events at most). A compiled checkpoint is one program, and what
    runs on a GPU is not taken apart: hooks would wait for it at every seam.
    """

    def __init__(self, ref: ScorerRef, *, device: str, threads: int) -> None:
        def opened() -> Scorer:
            return ref.open(device=device, threads=threads)

        self.opened: Callable[[], Scorer] = opened
        self.scorer = opened()
        self.how: How | None = "profile" if ref.runtime == "onnxruntime" else None
        if self._is("recommender.ranking", "TorchScorer"):
            self.how = "hooks"
        if device != "cpu":
            self.how = None

    def _is(self, module: str, name: str) -> bool:
        """Whether the scorer is of this class; its module is not there where no checkpoint was opened."""
        found = sys.modules.get(module)
        return found is not None and isinstance(self.scorer, getattr(found, name))

    def formulas(self) -> Mapping[str, Any] | None:
        """The cost of a checkpoint as it runs, told by its model; None: not known."""
        if not self._is("recommender.ranking", "TorchScorer") and not self._is(
            "recommender.program", "ProgramScorer"
        ):
            return None
        from recommender.models.cost import PRECISIONS, cost_card

        scorer: Any = self.scorer
        return cost_card(scorer.model, table_precision=PRECISIONS[scorer.table().dtype])

    def split(
        self, batches: Sequence[HistoryArrays], *, k: int, calls: int, seconds: float, rows: int
    ) -> Said:
        """{plain_ns: [..], parts: [{part: ns}, ..] or null, products: [[ns, FLOPs], ..] or null, overflowed}.

        `overflowed`: there are sessions, but their profile misses some of the calls, so it tells of none.

        At most `calls` of each kind, and no more once `seconds` are over. Plain and traced calls of a batch
        come in turn, and each goes first every other time, as the second one finds its data in the caches.
        """
        if self.how == "hooks":
            return self._hooked(batches, k, calls, seconds)
        if self.how == "profile":
            return self._profiled(batches, k, calls, seconds, rows)
        return _said(_in_turn(self._plain(k), None, batches, calls, seconds))

    def _hooked(self, batches: Sequence[HistoryArrays], k: int, calls: int, seconds: float) -> Said:
        from bench.trace_torch import TorchTrace

        trace, parts = TorchTrace(self.scorer), list[Mapping[str, int]]()  # type: ignore[arg-type]
        plain = _in_turn(
            self._plain(k), lambda batch: parts.append(trace.call(batch, k)), batches, calls, seconds
        )
        return _said(plain, parts=parts[1:])

    def _profiled(
        self, batches: Sequence[HistoryArrays], k: int, calls: int, seconds: float, rows: int
    ) -> Said:
        from bench.trace_onnx import OnnxTrace

        trace = OnnxTrace(self.opened)
        plain = _in_turn(self._plain(k), lambda batch: trace.call(batch, k), batches, calls, seconds)
        found = trace.ended(rows, skipped=1)
        if not trace.sessions or found is None:
            return _said(plain, overflowed=found is None)
        return _said(
            plain,
            parts=[dict(each.parts) for each in found],
            products=[[each.product_ns, each.product_flops] for each in found],
        )

    def _plain(self, k: int) -> Callable[[HistoryArrays], int]:
        def call(batch: HistoryArrays) -> int:
            started = time.perf_counter_ns()
            self.scorer.top_k(batch, k)
            return time.perf_counter_ns() - started

        return call


def _said(
    plain: list[int], *, parts: Sequence[Mapping[str, int]] | None = None,
    products: Sequence[Sequence[float]] | None = None, overflowed: bool = False,
) -> Said:  # fmt: skip
    return {"plain_ns": plain, "parts": parts, "products": products, "overflowed": overflowed}


def _in_turn(
    plain: Callable[[HistoryArrays], int],
    traced: Callable[[HistoryArrays], object] | None,
    batches: Sequence[HistoryArrays],
    calls: int,
    seconds: float,
) -> list[int]:
    """Nanoseconds of the plain calls; before them, one call of each kind warms up."""
    plain(batches[0])
    if traced is not None:
        traced(batches[0])
    begin, took = time.perf_counter(), list[int]()
    while len(took) < min(calls, LEAST) or (len(took) < calls and time.perf_counter() - begin < seconds):
        batch = batches[len(took) % len(batches)]
        if traced is not None and len(took) % 2:
            traced(batch)
        took.append(plain(batch))
        if traced is not None and len(took) % 2:
            traced(batch)
    return took
