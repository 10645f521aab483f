"""Full ranking in torch: user vectors by length-sorted micro-batches, then one product with the item
table.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recommender.models.interface import History, SequentialRecommender
from recommender.scoring import HistoryArrays, Int64, TopK

USERS_PER_PRODUCT = 256  # a larger score matrix leaves the caches of a CPU
SCORES_PER_PRODUCT = 1 << 28  # on other devices, which want large products: 1 GiB of float32
TOKENS_PER_CALL = 4096  # padded positions per call of the body
TOKENS_ELSEWHERE = 1 << 16  # the same on other devices: 1,024 histories of 64 items
HALVES = (torch.float16, torch.bfloat16)
CALL_COST = 200
"""What a call costs besides its positions, in positions. Measured on one core: 140 to 260 for bodies of width
64 in training and in scoring, 45 for width 256 (where the cut matters less); a GPU has not been measured.
"""


class TorchScorer:
    """A checkpoint as a scorer: exact top-k and exact ranks over the whole catalogue.

    `table`: the item table that is scored, where it is kept otherwise than the model has it.
    """

    def __init__(self, model: SequentialRecommender, table: Tensor | None = None) -> None:
        self.model = model.eval()
        self.device = next(iter(model.state_dict().values())).device
        self._table = table

    def table(self) -> Tensor:
        """The item table that is scored, [n_items + 1, D]."""
        return self.model.item_table() if self._table is None else self._table

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best rows of each history; equal scores in ascending row order."""
        if not len(history.items):
            return TopK(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))
        return self.top_of_vectors(self.vectors(history), history.seen, k)

    def top_of_vectors(self, vectors: Tensor, seen: Int64 | None, k: int) -> TopK:
        """The scoring stage alone: user vectors [B, D] to the k best rows, `seen` [B, S] left out."""
        items = np.empty((len(vectors), k), dtype=np.int64)
        scores = np.empty((len(vectors), k), dtype=np.float32)
        for part, block in self._scores(vectors, seen):
            best, rows = top_rows(block, k)
            rows = rows.masked_fill(best == -torch.inf, 0)  # fewer than k items were left to recommend
            items[part], scores[part] = rows.cpu().numpy(), best.cpu().numpy()
        return TopK(items, scores)

    def ranks(
        self, history: HistoryArrays, targets: Int64, *, ties: str = "pessimistic", among: Int64 | None = None
    ) -> Int64:
        """0-based rank [B] of each target among all unseen items, or among the rows `among` [B, n].

        The target itself is never masked.
        """
        out = np.empty(len(targets), dtype=np.int64)
        if not len(targets):
            return out
        for part, block in self._scores(self.vectors(history), history.seen, targets):
            gold = torch.from_numpy(targets[part]).to(block.device)
            if among is not None:
                rows = torch.from_numpy(among[part]).to(block.device)
                chosen = torch.cat((gold.unsqueeze(1), rows), dim=1)
                block, gold = block.gather(1, chosen), torch.zeros_like(gold)
            out[part] = rank_of(block, gold, ties).cpu().numpy()
        return out

    def vectors(self, history: HistoryArrays) -> Tensor:
        """User vectors [B, D] of the newest `max_length` items; users are batched by length and trimmed."""
        items, times = history.items, history.times
        longest = self.model.max_length
        items, times = items[:, -longest:], None if times is None else times[:, -longest:]
        lengths = (items != 0).sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        out: Tensor | None = None
        with torch.inference_mode():
            tokens = TOKENS_PER_CALL if self.device.type == "cpu" else TOKENS_ELSEWHERE
            for users, width in micro_batches(lengths[order], tokens, call_cost(self.device)):
                chosen = order[users]
                newest = slice(items.shape[1] - width, None)
                batch = History(
                    torch.from_numpy(items[chosen, newest]).to(self.device),
                    times=None if times is None else torch.from_numpy(times[chosen, newest]).to(self.device),
                )
                vectors = self.model.user_vector(batch)
                if out is None:
                    out = vectors.new_empty(len(lengths), vectors.shape[1])
                out[torch.from_numpy(chosen).to(self.device)] = vectors
        assert out is not None
        return out

    def _scores(
        self, vectors: Tensor, seen: Int64 | None, keep: Int64 | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Masked scores [b, n_items + 1] of one slice of users after another; rows `keep` [B] stay
        unmasked.
        """
        with torch.inference_mode():
            table = self.table()
            at_once = users_per_product(self.device, len(table))
            buffer = table.new_empty(min(len(vectors), at_once), len(table))
            for start in range(0, len(vectors), at_once):
                part = slice(start, start + at_once)
                users = vectors[part]  # one buffer for all: fresh memory would cost a page fault every 4 KiB
                scores = score_product(users, table, out=buffer[: len(users)])
                gold = None if keep is None else torch.from_numpy(keep[part]).to(scores.device).unsqueeze(1)
                gold_scores = None if gold is None else scores.gather(1, gold)
                if seen is not None:
                    scores.scatter_(1, torch.from_numpy(seen[part]).to(scores.device), -torch.inf)
                scores[:, 0] = -torch.inf
                if gold is not None and gold_scores is not None:
                    scores.scatter_(1, gold, gold_scores)
                yield part, scores


def micro_batches(
    sorted_lengths: Int64, tokens: int, call_cost: int = CALL_COST
) -> Iterator[tuple[slice, int]]:
    """(slice of users, width) over users sorted by length: the cheapest cut into calls of the body.

    A call costs its padded positions and `call_cost` more; one with several users has at most `tokens` of
    them. Users of one length are parted only where `tokens` demands it; an empty history counts as one
    position.
    """
    lengths = np.maximum(sorted_lengths, 1)
    widths, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate(([0], np.cumsum(counts)))  # users up to each width
    best, cut = np.zeros(len(ends)), np.zeros(len(ends), dtype=np.int64)
    for last, width in enumerate(widths, start=1):  # best[last]: of all users up to this width
        users = ends[last] - ends[:last]
        costs = best[:last] + users * width + call_cost * -(-users // max(tokens // width, 1))
        cut[last] = np.argmin(costs)
        best[last] = costs[cut[last]]
    bounds = [len(widths)]
    while bounds[-1]:
        bounds.append(int(cut[bounds[-1]]))
    for first, last in pairwise(reversed(bounds)):
        start, stop = int(ends[first]), int(ends[last])
        calls = -(-(stop - start) // max(tokens // int(widths[last - 1]), 1))
        edges = [start + (stop - start) * call // calls for call in range(calls + 1)]
        for begin, end in pairwise(edges):
            yield slice(begin, end), int(lengths[end - 1])


def call_cost(device: torch.device) -> int:
    """`CALL_COST` on a CPU; elsewhere more than any padding, so that as few are made as memory allows."""
    return CALL_COST if device.type == "cpu" else 10**9


def users_per_product(device: torch.device, rows: int) -> int:
    """Users whose scores over a table of `rows` are made at once."""
    if device.type == "cpu":
        return USERS_PER_PRODUCT
    return max(USERS_PER_PRODUCT, SCORES_PER_PRODUCT // rows)


def score_product(users: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """Users [b, D] x table [n, D] -> float32 [b, n]; computed in the type of the table.

    CUDA keeps the sums of products in half precision in float32. `out` [b, n], of the table's type, may be
    used for the result.
    """
    users = users.to(table.dtype)
    if table.dtype in HALVES and table.is_cuda:
        return torch.mm(users, table.T, out_dtype=torch.float32)
    return (torch.mm(users, table.T) if out is None else torch.mm(users, table.T, out=out)).float()


def best_first(best: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(scores [B, k], rows [B, k]) of a top-k in any order, best first and ties by ascending row."""
    rows, by_row = rows.sort(dim=1)
    best = best.gather(1, by_row)
    best, by_score = best.sort(dim=1, descending=True, stable=True)
    return best, rows.gather(1, by_score)


def top_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(scores [B, k], rows [B, k]) best first, ties by ascending row.

    `torch.topk` leaves ties in any order, so they are put right afterwards; rows whose k-th score is tied
    with one outside are sorted whole.
    """
    best, rows = best_first(*scores.topk(k, dim=1))
    tied = (scores >= best[:, -1:]).sum(dim=1) > k
    if tied.any():
        whole, order = scores[tied].sort(dim=1, descending=True, stable=True)
        best[tied], rows[tied] = whole[:, :k], order[:, :k]
    return best, rows


def rank_of(scores: Tensor, targets: Tensor, ties: str) -> Tensor:
    """0-based rank of each target row by counting: scores [B, n], targets [B]; a NaN never helps."""
    gold = scores.gather(1, targets.unsqueeze(1))
    below = (scores < gold).sum(dim=1, dtype=torch.int32)  # so counted, a NaN counts against us too
    rank = scores.shape[1] - 1 - below
    if ties == "pessimistic":
        return rank
    later = torch.arange(scores.shape[1], device=scores.device) > targets.unsqueeze(1)
    return rank - ((scores == gold) & later).sum(dim=1)
