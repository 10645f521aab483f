"""Where the time of a checkpoint's call goes: a clock that is turned at the seams of model and scorer.

Before the first block: embedding (masks and positions included). From the first block to the end of the last:
blocks. Until the user vector is there: head. Then the product with the item table and the masking: scoring;
then the best rows: top_k. What lies between these, such as cutting micro-batches and copying to and from
numpy, is other.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from bench.stopwatch import Stopwatch, replaced
from recommender import ranking
from recommender.models.last_position import LastPosition
from recommender.ranking import TorchScorer
from recommender.scoring import HistoryArrays


class TorchTrace:
    """Calls of a checkpoint that are taken apart."""

    def __init__(self, scorer: TorchScorer) -> None:
        self.scorer = scorer
        self.watch = Stopwatch()

    def call(self, batch: HistoryArrays, k: int) -> Mapping[str, int]:
        """Nanoseconds of one call by part."""
        with hooked(self.scorer, self.watch):
            self.watch.restart()
            self.scorer.top_k(batch, k)
            self.watch.turn("other")
        return dict(self.watch.spent)


@contextmanager
def hooked(scorer: TorchScorer, watch: Stopwatch) -> Iterator[None]:
    """Turn `watch` at every seam for the length of the context."""
    model = scorer.model
    with ExitStack() as stack:
        stack.enter_context(
            replaced(model, "user_vector", watch.within("embedding", model.user_vector))
        )  # fmt: skip
        stack.enter_context(replaced(scorer, "_scores", _timed_scores(scorer._scores, watch)))
        stack.enter_context(
            replaced(ranking, "top_rows", watch.within("top_k", ranking.top_rows))
        )  # fmt: skip
        body = model.bodies().get("user")
        if body is not None and len(body.blocks):
            _watch_blocks(body.blocks, watch, stack)
        yield


def _watch_blocks(blocks: nn.ModuleList, watch: Stopwatch, stack: ExitStack) -> None:
    """The last block may be one that a `LastPosition` stands in for, and then its own hooks are silent."""

    def before(*_: Any) -> None:
        watch.turn("blocks")

    def after(*_: Any) -> None:
        watch.turn("head")

    for handle in (blocks[0].register_forward_pre_hook(before), blocks[-1].register_forward_hook(after)):
        stack.callback(handle.remove)
    forward = LastPosition.forward
    stack.enter_context(replaced(LastPosition, "forward", watch.within("blocks", forward, after="head")))


def _timed_scores(scores: Any, watch: Stopwatch) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        made = scores(*args, **kwargs)
        while True:
            watch.turn("scoring")
            try:
                block = next(made)
            except StopIteration:
                return
            finally:
                watch.turn("other")
            yield block

    return timed
