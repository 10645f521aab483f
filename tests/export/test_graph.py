import pytest
import torch

from export.graph import ScoringGraph
from recommender.errors import InputError
from recommender.models.interface import History, SequentialRecommender
from tests.export.fixtures import N_ITEMS, left_padded


def test_scores_are_user_vector_times_item_table(sasrec: SequentialRecommender) -> None:
    items = torch.from_numpy(left_padded(5, 7))
    with torch.no_grad():
        rows, scores = ScoringGraph(sasrec, N_ITEMS)(items, torch.zeros(5, 1, dtype=torch.int64))
        everything = sasrec.user_vector(History(items)) @ sasrec.item_table().T
    torch.testing.assert_close(scores, everything.gather(1, rows), atol=1e-6, rtol=1e-6)
    assert (scores.diff(dim=1) <= 0).all()


def test_row_zero_and_seen_rows_come_last_with_minus_infinity(sasrec: SequentialRecommender) -> None:
    items = torch.from_numpy(left_padded(4, 6))
    seen = torch.tensor([[3, 4, 5, 0], [0, 0, 0, 0], [1, 1, 2, 2], [40, 0, 0, 0]])
    with torch.no_grad():
        rows, scores = ScoringGraph(sasrec, N_ITEMS)(items, seen)
    for user, (line, values) in enumerate(zip(rows, scores, strict=True)):
        shown = set(line[values > -torch.inf].tolist())
        assert shown == set(range(1, N_ITEMS + 1)) - set(seen[user].tolist())


@pytest.mark.parametrize("k", [0, -1, N_ITEMS + 1])
def test_a_k_that_does_not_fit_the_catalogue_is_refused(sasrec: SequentialRecommender, k: int) -> None:
    with pytest.raises(InputError, match=f"top_k is {k}, but the catalogue has {N_ITEMS} items") as caught:
        ScoringGraph(sasrec, k)
    assert caught.value.exit_code == 2
