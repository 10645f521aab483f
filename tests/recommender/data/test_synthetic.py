from pathlib import Path

import numpy as np
import pytest

from recommender.data.config import DataConfig, SyntheticLog
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared
from recommender.data.stats import stats
from recommender.data.synthetic import synthetic_items, synthetic_log

SIZE = SyntheticLog(users=1200, items=400)


@pytest.fixture
def prepared(cache_of_session: Path) -> Prepared:
    return prepare(DataConfig(source="synthetic", synthetic=SIZE), cache_of_session)


def ndcg_at_10(prepared: Prepared, scores_of: np.ndarray, *, by_last: bool) -> float:
    """Full ranking of the test items, seen masked, ties against us. Scores: [rows], or [last row, rows]."""
    users, positions = prepared.split("leave-one-out").targets("test")
    gains = []
    for user, position in zip(users, positions, strict=True):
        past, target = prepared.history(user, position), prepared.history(user)[position]
        scores = (scores_of[past[-1]] if by_last else scores_of).astype(float)
        scores[0], scores[past] = -np.inf, -np.inf
        rank = int((scores >= scores[target]).sum()) - 1
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    return float(np.mean(gains))


def pairs_in_training(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    ends = prepared.split("leave-one-out").train_end
    pasts = [prepared.history(user, int(end)) for user, end in enumerate(ends)]
    return np.concatenate([past[:-1] for past in pasts]), np.concatenate([past[1:] for past in pasts])


def test_popularity_is_far_behind_what_item_ids_predict(prepared: Prepared) -> None:
    counts = prepared.train_counts(prepared.split("leave-one-out"))
    follows = np.zeros((prepared.n_items + 1, prepared.n_items + 1))
    np.add.at(follows, pairs_in_training(prepared), 1.0)
    popularity = ndcg_at_10(prepared, counts, by_last=False)
    markov = ndcg_at_10(prepared, follows + counts / counts.sum(), by_last=True)
    assert 0 < popularity < 0.08 and markov > 4 * popularity


def test_popularity_is_far_behind_what_title_words_predict(prepared: Prepared) -> None:
    titles = [set(), *(set(title.replace(",", "").split()) for title in prepared.catalogue["title"])]
    words = sorted(set().union(*titles))
    bag = np.array([[word in title for word in words] for title in titles], dtype=float)
    before, after = pairs_in_training(prepared)
    together = bag[before].T @ bag[after] + 1
    expected = together.sum(1, keepdims=True) * together.sum(0, keepdims=True) / together.sum()
    counts = prepared.train_counts(prepared.split("leave-one-out"))
    by_words = ndcg_at_10(prepared, bag @ np.log(together / expected) @ bag.T, by_last=True)
    assert by_words > 4 * ndcg_at_10(prepared, counts, by_last=False)


def test_the_whole_history_says_more_than_its_last_item(prepared: Prepared) -> None:
    brand = np.array(["", *(title.split()[0] for title in prepared.catalogue["title"])])
    users, positions = prepared.split("leave-one-out").targets("test")
    last, mode = 0, 0
    for user, position in zip(users, positions, strict=True):
        past, target = brand[prepared.history(user, position)], brand[prepared.history(user)[position]]
        names, counts = np.unique(past, return_counts=True)
        last, mode = last + (past[-1] == target), mode + (names[counts.argmax()] == target)
    assert mode > last


def test_popularity_is_skewed_and_histories_have_the_wanted_length(prepared: Prepared) -> None:
    numbers = stats(prepared)
    assert numbers["gini"] > 0.3 and numbers["top_1_percent"] > 0.04
    assert numbers["history_length"]["mean"] == pytest.approx(SIZE.mean_length, rel=0.1)
    assert numbers["repeat_share"] == 0 and numbers["titled_share"] == 1 and numbers["has_time"]


def test_titles_are_words_and_unique(prepared: Prepared) -> None:
    titles = prepared.catalogue["title"].to_list()
    assert len(set(titles)) == len(titles)
    assert all(title.replace(",", "").replace(" ", "").isalpha() for title in titles)


def test_more_items_than_finishes_get_an_edition() -> None:
    titles = synthetic_items(SyntheticLog(items=2000))["title"].to_list()
    assert len(set(titles)) == 2000 and titles[-1].endswith("edition 2")


def test_equal_seeds_give_equal_logs_and_other_seeds_other_logs() -> None:
    first, again, other = (synthetic_log(SyntheticLog(users=50, items=40, seed=seed)) for seed in (1, 1, 2))
    assert first.items.tolist() == again.items.tolist() != other.items.tolist()
    assert first.time is not None and again.time is not None and (first.time == again.time).all()


@pytest.mark.parametrize("size", [{"users": 10, "items": 20, "mean_length": 4}, {"users": 10, "items": 20}])
def test_the_smallest_shop_still_makes_histories(size: dict[str, int]) -> None:
    log = synthetic_log(SyntheticLog.model_validate(size))
    assert len(set(log.users.tolist())) == 10
    assert len(set(zip(log.users.tolist(), log.items.tolist(), strict=True))) == len(log.users)
