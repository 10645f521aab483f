"""The one graph that is deployed: user vector x item table, seen rows masked, the k best.

Every recommender of this project scores as user vector x item table, so this graph serves all of them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.errors import InputError
from recommender.models.interface import History, SequentialRecommender


class ScoringGraph(nn.Module):
    """(items int64 [B, L], seen int64 [B, S]) -> (top_items int64 [B, k], scores float32 [B, k]).

    `k` is fixed, as TopK wants a constant. Row 0 and the rows in `seen` score -inf; a user with fewer than k
    rows left gets these at the end of the list, still with -inf. `seen` is padded with 0, and is [B, 1] of
    zeros where nothing is to be masked. Equal scores: torch leaves their order open, ONNX puts the lower row
    first.
    """

    table: Tensor

    def __init__(self, model: SequentialRecommender, k: int) -> None:
        super().__init__()
        check_top_k(k, model.n_items)
        self.model, self.k = model, k
        with torch.no_grad():
            table = model.item_table().detach().float()
        self.register_buffer("table", table)

    def forward(self, items: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The k best rows per history and their scores, best first."""
        scores = self.scores(self.model.user_vector(History(items)), seen)
        best, rows = torch.topk(scores, self.k, dim=1, sorted=True)
        return rows, best  # a plain tuple: exporters refuse torch's named one

    def scores(self, user: Tensor, seen: Tensor) -> Tensor:
        """Float32 scores [B, n_items + 1] of user vectors [B, D]; what must not come back scores -inf."""
        # `linear` becomes Gemm(transB=1), which reads the very initializer that the input side gathers from
        scores = functional.linear(user.float(), self.table)
        blocked = torch.cat((torch.zeros_like(seen[:, :1]), seen), dim=1)
        return scores.scatter(1, blocked, float("-inf"))


def check_top_k(k: int, n_items: int) -> None:
    """Raise InputError unless 1 <= k <= n_items."""
    if not 1 <= k <= n_items:
        raise InputError(
            f"top_k is {k}, but the catalogue has {n_items} items",
            where="export.top_k",
            fix=f"choose top_k between 1 and {n_items}",
        )
