"""A call of a checkpoint as one program, from item rows to lists: what can be compiled, and captured whole.

Shapes are few: histories are padded to the full length, users up to a power of two, seen rows up to a power
of four. Each shape is compiled once, in its first call.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from recommender.errors import StageError
from recommender.models.interface import History, SequentialRecommender
from recommender.ranking import TorchScorer, best_first, score_product
from recommender.scoring import HistoryArrays, Int64, TopK
from recommender.shapes import padded

Program = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(items [B, L], seen [B, S]) -> what `ListProgram` gives."""


class ListProgram(nn.Module):
    """(items int64 [B, L], seen int64 [B, S]) -> (rows int64 [B, k + 1], scores float32 [B, k + 1]).

    Best first, equal scores by ascending row. The one beyond k tells whether the k-th is tied with others, of
    which top-k may have taken any. Row 0 and `seen`, which is padded with 0, score -inf.
    """

    def __init__(self, model: SequentialRecommender, table: Tensor, k: int) -> None:
        super().__init__()
        self.model, self.k = model, k
        self.table = table if isinstance(table, nn.Parameter) else nn.Parameter(table, requires_grad=False)

    def forward(self, items: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        scores = score_product(self.model.user_vector(History(items)), self.table)
        blocked = torch.cat((torch.zeros_like(seen[:, :1]), seen), dim=1)
        scores = scores.scatter(1, blocked, float("-inf"))
        best, rows = torch.topk(scores, min(self.k + 1, self.table.shape[0]), dim=1)
        best, rows = best_first(best, rows)
        return rows, best


def graphs_skipped() -> int:
    """How many programs of this process torch has left without CUDA graphs, of which it only warns."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def exported(program: ListProgram, *, batch: int, length: int, seen: int) -> nn.Module:
    """The program as a flat graph of these shapes, on the device of its table."""
    device = program.table.device
    arrays = (torch.ones(batch, length, dtype=torch.long), torch.zeros(batch, seen, dtype=torch.long))
    with torch.no_grad():
        found = torch.export.export(program, tuple(each.to(device) for each in arrays), strict=False)
    return found.module()


class ProgramScorer:
    """A checkpoint as a scorer that runs one compiled program per call.

    `graphs`: through CUDA graphs, each recorded in the second call of its shape. `table`: the item table that
    is scored, where it is kept otherwise than the model has it.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        table: Tensor | None = None,
        *,
        graphs: bool = False,
        compiler: Callable[..., Program] = torch.compile,
    ) -> None:
        self.exact = TorchScorer(model, table)
        self.model, self.device = self.exact.model, self.exact.device
        self.mode = "reduce-overhead" if graphs else "default"
        self.skips = graphs_skipped() if graphs else None
        self.compiler = compiler
        self.programs: dict[tuple[int, ...], Program] = {}

    def table(self) -> Tensor:
        """The item table that is scored, [n_items + 1, D]."""
        return self.exact.table()

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best rows of each history; equal scores in ascending row order.

        Raises StageError where there should be CUDA graphs and torch has made none.
        """
        users = len(history.items)
        if not users:
            return TopK(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))
        items, seen = padded(history, self.model.max_length)
        with torch.no_grad():
            found = self._program(items, seen, k)(self._there(items), self._there(seen))
            rows, scores = (each[:users].cpu().numpy() for each in found)
        if self.skips is not None and graphs_skipped() > self.skips:
            raise StageError(
                "torch compiled the program without CUDA graphs",
                where="graphs", fix="TORCH_LOGS=cudagraphs says why; take `compile` instead",
            )  # fmt: skip
        rows = np.where(scores == -np.inf, 0, rows)
        return self._settled(TopK(rows, scores), history, k)

    def _there(self, array: Int64) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _program(self, items: Int64, seen: Int64, k: int) -> Program:
        shape = (*items.shape, seen.shape[1], k)
        if shape not in self.programs:
            with torch.no_grad():
                flat = exported(
                    ListProgram(self.model, self.table().detach(), k).eval(),
                    batch=items.shape[0], length=items.shape[1], seen=seen.shape[1],
                )  # fmt: skip
            self.programs[shape] = self.compiler(flat, mode=self.mode, dynamic=False, fullgraph=True)
        return self.programs[shape]

    def _settled(self, found: TopK, history: HistoryArrays, k: int) -> TopK:
        """The first k; users whose k-th score is tied with one outside are answered again, in eager mode."""
        items, scores = found.items[:, :k].copy(), found.scores[:, :k].copy()
        if found.scores.shape[1] > k:
            tied = np.flatnonzero((found.scores[:, k - 1] == found.scores[:, k]) & (items[:, -1] != 0))
            if len(tied):
                seen = None if history.seen is None else history.seen[tied]
                again = self.exact.top_k(HistoryArrays(history.items[tied], seen), k)
                items[tied], scores[tied] = again.items, again.scores
        return TopK(items, scores)
