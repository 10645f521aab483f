import numpy as np
import pytest

from bench.compare import Ratio
from bench.noise import aa_half_widths, half_width, pooled_half_width, trainings
from bench.slices import Float64
from tests.bench.judging import judged


def seeds_of(hits: float, other: float, users: int = 2000) -> dict[int, list[int]]:
    """Ranks of two seeds that hit the top 10 with these probabilities, users drawn independently."""
    rng = np.random.default_rng(4)
    return {
        seed: np.where(rng.random(users) < share, 0, 99).tolist() for seed, share in ((1, hits), (2, other))
    }


def test_one_seed_says_nothing_about_seeds() -> None:
    assert aa_half_widths(judged([0, 3, 5]), draws=100, seed=0) == {}


def test_one_model_for_all_seeds_says_nothing_about_seeds() -> None:
    same, other = [0, 3, 20, 5], [0, 3, 20, 6]
    assert aa_half_widths(judged({1: same, 2: same}), draws=100, seed=0) == {}
    two, three = judged({1: same, 3: other}), judged({1: same, 2: same, 3: other})
    assert aa_half_widths(three, draws=100, seed=0) == aa_half_widths(two, draws=100, seed=0) != {}


def test_trainings_differ_on_every_data_set() -> None:
    ones, twos = np.ones(3), np.full(3, 2.0)
    assert trainings([]) == [] and trainings([{2: ones, 1: ones}]) == [1]
    assert trainings([{1: ones, 2: ones, 3: twos}]) == [1, 3]
    assert trainings([{1: ones, 2: twos}, {1: ones, 2: ones}]) == [1]
    assert trainings([{1: ones, 2: twos, 3: ones}, {2: ones, 3: twos}]) == [2, 3]


def test_seeds_that_differ_for_sure_have_at_least_their_difference() -> None:
    """Every user is 25% better with the other seed: the interval has no width, the noise is there."""
    values = np.random.default_rng(0).random(50) + 0.1
    found = pooled_half_width({"a": {1: values, 2: 1.25 * values}}, draws=200, seed=0)
    assert found == pytest.approx((0.25 + 0.2) / 2)  # the mean of both directions: 1.25 and 1 / 1.25


def test_fewer_users_mean_more_noise() -> None:
    few = aa_half_widths(judged(seeds_of(0.4, 0.4, users=200)), draws=400, seed=0)["hr@10"]
    many = aa_half_widths(judged(seeds_of(0.4, 0.4, users=20_000)), draws=400, seed=0)["hr@10"]
    assert 0 < many < 0.05 < few


def test_the_order_of_seeds_has_no_say() -> None:
    ranks = seeds_of(0.3, 0.4)
    turned = dict(reversed(ranks.items()))
    one, other = (aa_half_widths(judged(each), draws=300, seed=1)["hr@10"] for each in (ranks, turned))
    assert one == pytest.approx(other)


def test_all_pairs_of_seeds_are_averaged() -> None:
    base = np.random.default_rng(0).random(30) + 0.1
    found = pooled_half_width({"a": {1: base, 2: 2 * base, 3: 4 * base}}, draws=100, seed=0)
    assert found == pytest.approx((1 + 1 + 3 + 0.5 + 0.5 + 0.75) / 6)


def test_a_metric_without_an_interval_is_left_out() -> None:
    """One user of three hits: many draws hold nobody who does."""
    found = aa_half_widths(judged({1: [0, 99, 99], 2: [0, 99, 98]}), draws=200, seed=0)
    assert "hr@10" not in found and "mrr" in found


def test_a_metric_that_a_seed_lacks_is_left_out() -> None:
    lists = judged({1: [0, 2], 2: [1, 0]}, depth=5, ks=(1, 5, 10))
    assert set(aa_half_widths(lists, draws=100, seed=0)) <= {"hr@1", "hr@5", "ndcg@1", "ndcg@5"}


def test_pooled_noise_needs_two_seeds_that_all_data_sets_have() -> None:
    one: Float64 = np.ones(4)
    assert pooled_half_width({}, draws=100, seed=0) is None
    assert pooled_half_width({"a": {1: one, 2: one}, "b": {1: one}}, draws=100, seed=0) is None
    two = 2 * one
    assert pooled_half_width({"a": {1: one, 2: two}, "b": {1: one}}, draws=100, seed=0) is None
    assert pooled_half_width({"a": {1: one, 2: two}, "b": {2: one, 1: one}}, draws=100, seed=0) is None
    assert pooled_half_width({"a": {1: one, 2: two}, "b": {2: two, 1: one}}, draws=100, seed=0) == 0.75


@pytest.mark.parametrize(
    ("ci95", "width"), [((0.9, 1.05), 0.1), ((0.98, 1.2), 0.2), ((1.1, 1.2), 0.2), (None, None)]
)
def test_the_half_width_is_that_of_the_smallest_interval_around_1(
    ci95: tuple[float, float] | None, width: float | None
) -> None:
    found = half_width(Ratio(1.0, ci95, None))
    assert found == (None if width is None else pytest.approx(width))


def test_no_ratio_no_width() -> None:
    assert half_width(None) is None
