"""Full ranking against brute force; ties never in our favour."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.data.config import EvaluationConfig
from recommender.errors import InputError
from recommender.evaluate import histories, quality, rank_users, ranks_in_lists
from recommender.metrics import mean_metrics, per_user
from recommender.models.build import build_model
from recommender.models.config import PopularityConfig, SasrecConfig
from recommender.ranking import (
    CALL_COST,
    TorchScorer,
    call_cost,
    micro_batches,
    rank_of,
    top_rows,
)
from recommender.scoring import HistoryArrays, TopK
from tests.recommender.fixtures import cyclic_histories, prepared_from


def test_metrics_of_known_ranks() -> None:
    values = per_user(np.array([0, 4, 5]), [1, 5])
    assert values["hr@1"].tolist() == [1, 0, 0]
    assert values["ndcg@5"] == pytest.approx([1, 0.38685281, 0])
    assert values["mrr"] == pytest.approx([1, 0.2, 1 / 6])


def test_metrics_from_lists_leave_out_what_lists_cannot_tell() -> None:
    values = per_user(np.array([0, -1]), [5, 50], depth=20)
    assert set(values) == {"hr@5", "ndcg@5"}
    assert mean_metrics(values) == {"hr@5": 0.5, "ndcg@5": 0.5}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=5), st.integers(1, 9)
)
def test_top_rows_break_ties_by_row(rows: list[list[int]], k: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    best, found = top_rows(scores, k)
    for row, got, values in zip(rows, found.tolist(), best.tolist(), strict=True):
        want = sorted(range(9), key=lambda i: (-row[i], i))[:k]
        assert got == want
        assert values == [row[i] for i in want]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.integers(0, 5))
def test_rank_counts_ties_against_the_target(row: list[int], target: int) -> None:
    scores, gold = torch.tensor([row], dtype=torch.float32), torch.tensor([target])
    others = [value for i, value in enumerate(row) if i != target]
    assert rank_of(scores, gold, "pessimistic").item() == sum(value >= row[target] for value in others)
    by_row = sorted(range(6), key=lambda i: (-row[i], i)).index(target)
    assert rank_of(scores, gold, "by-row").item() == by_row


@pytest.mark.parametrize("ties", ["pessimistic", "by-row"])
def test_nan_scores_never_help(ties: str) -> None:
    scores = torch.tensor([[float("nan"), 1.0, 0.0], [0.0, float("nan"), 1.0], [float("nan")] * 3])
    assert rank_of(scores, torch.tensor([1, 1, 0]), ties).tolist() == [1, 2, 2]


@pytest.mark.parametrize("ties", ["pessimistic", "by-row"])
def test_a_list_with_a_nan_has_no_hit(ties: str) -> None:
    nan = float("nan")
    scores = np.array([[nan, 2, 1], [3, 2, 1], [nan, nan, nan], [3, 2, nan]], dtype=np.float32)
    found = ranks_in_lists(np.array([[4, 7, 9]] * 4), scores, np.array([7, 7, 4, 4]), ties)
    assert found.tolist() == [-1, 1, -1, -1]


def test_a_constant_scorer_hits_at_chance_or_below(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, cyclic_histories(60, 40, 8), 40)
    model = build_model(PopularityConfig(), n_items=40, max_length=10, seed=0)
    split = prepared.split("leave-one-out")
    metrics = quality(TorchScorer(model), prepared, split, "test", EvaluationConfig(), max_length=10)
    assert metrics["hr@10"] == 0


def test_scorer_masks_seen_and_padding_but_never_the_target(tmp_path: Path) -> None:
    counts = torch.arange(12.0)
    model = build_model(PopularityConfig(), n_items=11, max_length=4, seed=0, counts=counts)
    scorer = TorchScorer(model)
    history = HistoryArrays(np.array([[0, 11, 10]]), np.array([[11, 10, 9]]))
    assert scorer.top_k(history, 3).items.tolist() == [[8, 7, 6]]
    assert scorer.ranks(history, np.array([10])).tolist() == [0]  # a repeat: only the target is let through
    assert scorer.ranks(history, np.array([7])).tolist() == [1]
    assert scorer.ranks(history, np.array([7]), among=np.array([[1, 2, 8]])).tolist() == [1]


def test_scorer_reads_the_newest_items_of_a_longer_history() -> None:
    model = build_model(SasrecConfig(hidden=8), n_items=30, max_length=4, seed=0)
    longer, newest = np.array([[1, 2, 3, 4, 5]]), np.array([[2, 3, 4, 5]])
    lists = [TorchScorer(model).top_k(HistoryArrays(items), 5) for items in (longer, newest)]
    assert lists[0].items.tolist() == lists[1].items.tolist()


def test_a_list_ends_with_row_zero_where_nothing_is_left() -> None:
    model = build_model(PopularityConfig(), n_items=4, max_length=4, seed=0, counts=torch.arange(5.0))
    best = TorchScorer(model).top_k(HistoryArrays(np.array([[1, 2]]), np.array([[1, 2, 3]])), 3)
    assert best.items.tolist() == [[4, 0, 0]] and best.scores[0, 1] == -np.inf


def test_a_repeated_target_is_found_by_lists_as_by_exact_ranks(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [[1, 2, 3, 2], [3, 1, 2, 3]], 5)
    counts = torch.tensor([0.0, 1, 9, 8, 2, 3])
    scorer = TorchScorer(build_model(PopularityConfig(), n_items=5, max_length=4, seed=0, counts=counts))

    class ListsOnly:
        def top_k(self, history: HistoryArrays, k: int) -> TopK:
            return scorer.top_k(history, k)

    split, evaluation = prepared.split("leave-one-out"), EvaluationConfig(ks=(3,))
    for each in (scorer, ListsOnly()):
        assert rank_users(each, prepared, split, "test", evaluation, max_length=4).ranks.tolist() == [0, 0]


def test_exact_ranks_agree_with_lists_and_with_any_batching(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, cyclic_histories(50, 30, 12), 30)
    model = build_model(SasrecConfig(hidden=8), n_items=30, max_length=6, seed=0)
    split, evaluation = prepared.split("leave-one-out"), EvaluationConfig(ks=(5, 20))
    exact = rank_users(TorchScorer(model), prepared, split, "test", evaluation, max_length=6)

    class ListsOnly:
        def top_k(self, history: HistoryArrays, k: int) -> TopK:
            return TorchScorer(model).top_k(history, k)

    lists = rank_users(ListsOnly(), prepared, split, "test", evaluation, max_length=6, top=4)
    assert exact.depth is None and lists.depth == 20
    assert np.where(exact.ranks < 20, exact.ranks, -1).tolist() == lists.ranks.tolist()
    assert lists.top is not None and lists.top.shape == (50, 4)
    for i, (user, end) in enumerate(zip(*split.targets("test"), strict=True)):
        one = histories(prepared, np.array([user]), np.array([end]), 6)
        assert TorchScorer(model).ranks(one, exact.targets[i : i + 1])[0] == exact.ranks[i]


def test_tie_at_the_end_of_a_list_counts_as_a_miss() -> None:
    items, scores = np.array([[4, 7, 9]] * 3), np.array([[3.0, 1, 1], [3, 2, 1], [3, 3, 1]], dtype=np.float32)
    assert ranks_in_lists(items, scores, np.array([7, 9, 4]), "pessimistic").tolist() == [-1, 2, 1]
    assert ranks_in_lists(items, scores, np.array([7, 5, 4]), "by-row").tolist() == [1, -1, 0]


def test_histories_keep_the_newest_and_mask_the_whole_past(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [[1, 2, 3, 4, 5], [6, 7, 8]], 9)
    batch = histories(prepared, np.array([0, 1]), np.array([4, 2]), 3)
    assert batch.items.tolist() == [[2, 3, 4], [0, 6, 7]]
    assert batch.seen is not None and batch.seen.tolist() == [[1, 2, 3, 4], [0, 0, 6, 7]]


def test_sampled_negatives_are_unseen_and_need_exact_ranks(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, cyclic_histories(20, 30, 8), 30)
    model = build_model(SasrecConfig(hidden=8), n_items=30, max_length=6, seed=0)
    split, evaluation = prepared.split("leave-one-out"), EvaluationConfig(ks=(5,), sampled_negatives=9)
    first, again = (
        rank_users(TorchScorer(model), prepared, split, "test", evaluation, max_length=6).ranks
        for _ in range(2)
    )
    assert first.tolist() == again.tolist() and first.max() <= 9

    class ListsOnly:
        def top_k(self, history: HistoryArrays, k: int) -> TopK:
            raise AssertionError("not reached")

    with pytest.raises(InputError, match="exact ranks"):
        rank_users(ListsOnly(), prepared, split, "test", evaluation, max_length=6)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200), st.integers(0, 300))
def test_micro_batches_cover_everything_within_budget(lengths: list[int], tokens: int, cost: int) -> None:
    ordered = np.sort(np.array(lengths, dtype=np.int64))
    covered = 0
    for part, width in micro_batches(ordered, tokens, cost):
        assert part.start == covered and width == max(ordered[part].max(), 1)
        assert part.stop - part.start == 1 or width * (part.stop - part.start) <= tokens
        covered = part.stop
    assert covered == len(ordered)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 20))
def test_micro_batches_are_the_cheapest_cut(lengths: list[int], cost: int) -> None:
    ordered = np.sort(np.array(lengths, dtype=np.int64))

    def price(parts: list[tuple[int, int]]) -> int:
        return sum(cost + int(ordered[stop - 1]) * (stop - start) for start, stop in parts)

    cuts = (
        [0, *(i for i in range(1, len(ordered)) if chosen >> (i - 1) & 1), len(ordered)]
        for chosen in range(2 ** (len(ordered) - 1))
    )
    cheapest = min(price(list(pairwise(cut))) for cut in cuts)
    found = [(part.start, part.stop) for part, _ in micro_batches(ordered, 10**6, cost)]
    assert price(found) == cheapest


def test_costly_calls_are_few_and_free_ones_leave_no_padding() -> None:
    ordered = np.array([1, 1, 2, 5, 5, 9])
    assert [width for _, width in micro_batches(ordered, 100, 0)] == [1, 2, 5, 9]
    assert [width for _, width in micro_batches(ordered, 100, 10**6)] == [9]
    assert [part for part, _ in micro_batches(ordered, 27, 10**6)] == [slice(0, 3), slice(3, 6)]


def test_calls_are_few_where_their_cost_was_not_measured() -> None:
    ordered = np.sort(np.random.default_rng(0).integers(1, 50, 400))
    cpu, gpu = (list(micro_batches(ordered, 2048, call_cost(torch.device(d)))) for d in ("cpu", "cuda"))
    fewest = int(np.ceil(ordered.sum() / 2048))
    assert call_cost(torch.device("cpu")) == CALL_COST
    assert fewest <= len(gpu) <= fewest + 2 < len(cpu)
