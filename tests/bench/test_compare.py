import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.compare import (
    MIN_ROUNDS,
    Pooled,
    Ratio,
    Resampled,
    median_interval,
    median_ratio,
    pooled_ratio,
    resample,
)

values = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40)


def drawn(candidate: list[float], against: list[float], draws: int = 4000) -> Resampled:
    metrics = {"new": {"m": np.array(candidate)}, "old": {"m": np.array(against)}}
    return resample(metrics, draws=draws, seed=3)


@settings(deadline=None, max_examples=50)
@given(values.filter(any))
def test_a_candidate_against_itself_has_ratio_1_and_no_spread(same: list[float]) -> None:
    found = drawn(same, same, draws=100).ratio("new", "old", "m")
    assert found is not None
    assert (found.ratio, found.p_value) == (1.0, 1.0)
    assert found.ci95 is None or found.ci95[1] == 1.0


def test_identical_candidates_of_real_size_have_interval_1_to_1() -> None:
    rng = np.random.default_rng(0)
    same = (rng.random(3000) < 0.1) * rng.random(3000)
    others = {f"m{i}": rng.random(3000) for i in range(9)}
    found = resample({"a": {**others, "m": same}, "b": {"m": same.copy()}}, draws=300, seed=1).ratio(
        "b", "a", "m"
    )
    assert found is not None
    assert found == (1.0, (1.0, 1.0), 1.0)


def test_ratio_and_p_value_by_hand() -> None:
    """Two users: a draw holds user 0 never, once or twice (1/4, 1/2, 1/4), so the ratio is 0, 1 or 2."""
    found = drawn([2.0, 0.0], [1.0, 1.0])
    ratio = found.ratio("new", "old", "m")
    assert ratio is not None
    assert (ratio.ratio, ratio.ci95, ratio.p_value) == (1.0, (0.0, 2.0), 1.0)
    sums, counts = np.unique(found.draws[:, found.columns["new", "m"]], return_counts=True)
    assert sums.tolist() == [0.0, 2.0, 4.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_users_are_drawn_in_pairs() -> None:
    """Users differ a hundredfold, but the candidate is 10% better for each of them: no spread."""
    base = np.random.default_rng(5).lognormal(0, 2, 200)
    ratio = drawn((base * 1.1).tolist(), base.tolist(), draws=500).ratio("new", "old", "m")
    assert ratio is not None
    assert ratio.ci95 == pytest.approx((1.1, 1.1))
    assert ratio.p_value == pytest.approx(2 / 501)


def test_a_known_shift_is_found_and_no_shift_is_not() -> None:
    rng = np.random.default_rng(1)
    old = (rng.random(4000) < 0.3).astype(float)
    worse = old * (rng.random(4000) < 0.9)
    ratio = drawn(worse.tolist(), old.tolist(), draws=1000).ratio("new", "old", "m")
    assert ratio is not None and ratio.ci95 is not None and ratio.p_value is not None
    assert ratio.ci95[1] < 1 and ratio.p_value < 0.01
    assert 0.85 < ratio.ratio < 0.95
    other = drawn(rng.permutation(old).tolist(), old.tolist(), draws=1000).ratio("new", "old", "m")
    assert other is not None and other.ci95 is not None and other.p_value is not None
    assert other.ci95[0] < 1 < other.ci95[1] and other.p_value > 0.05


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    covered, runs, true = 0, 300, truth()
    for run in range(runs):
        user = rng.random(150)
        old, new = (user < 0.4).astype(float), (user + rng.normal(0, 0.2, 150) < 0.3).astype(float)
        ratio = resample({"n": {"m": new}, "o": {"m": old}}, draws=300, seed=run).ratio("n", "o", "m")
        assert ratio is not None and ratio.ci95 is not None
        covered += ratio.ci95[0] <= true <= ratio.ci95[1]
    assert 0.90 <= covered / runs <= 0.985


def truth() -> float:
    """P(u + e < 0.3) / 0.4 for uniform u and e ~ N(0, 0.2), by a sum over a fine grid."""
    rng = np.random.default_rng(99)
    users = (np.arange(200_000) + 0.5) / 200_000
    return float(((users + rng.normal(0, 0.2, users.size)) < 0.3).mean() / 0.4)


def test_no_ratio_against_a_candidate_that_never_hits() -> None:
    assert drawn([1.0, 0.0], [0.0, 0.0]).ratio("new", "old", "m") is None
    found = drawn([0.0, 0.0], [1.0, 0.0]).ratio("new", "old", "m")
    assert found is not None and found.ratio == 0.0


def test_no_interval_where_many_draws_have_no_ratio() -> None:
    found = drawn([1.0, 1.0], [1.0, 0.0]).ratio("new", "old", "m")
    assert found is not None
    assert found.ratio == 2.0 and found.ci95 is None
    assert found.p_value == pytest.approx(0.5, abs=0.06)  # a quarter of the draws shows no difference


def test_a_metric_that_one_of_them_lacks_has_no_ratio() -> None:
    found = resample({"a": {"mrr": np.ones(3)}, "b": {"hr": np.ones(3)}}, draws=100, seed=0)
    assert found.ratio("a", "b", "mrr") is None and found.ratio("a", "b", "hr") is None


def test_only_some_users_are_drawn_when_rows_are_given() -> None:
    metrics = {"a": {"m": np.array([1.0, 5.0, 1.0])}}
    found = resample(metrics, draws=100, seed=0, rows=np.array([0, 2]))
    assert found.interval("a", "m") == (1.0, 1.0)


def test_draws_depend_on_the_seed_and_not_on_how_they_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"a": {"m": np.random.default_rng(0).random(50)}}
    whole = resample(metrics, draws=101, seed=4).draws
    monkeypatch.setattr("bench.compare.MEMORY", 8 * 50 * 7)
    assert np.allclose(resample(metrics, draws=101, seed=4).draws, whole)
    assert not np.allclose(resample(metrics, draws=101, seed=5).draws, whole)


def test_median_ratio_is_exact_for_a_constant_factor_and_pairs_rounds() -> None:
    fast = np.array([1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 1.0])  # a disturbance that hit both
    found = median_ratio(3 * fast, fast, draws=500, seed=0)
    assert found.ratio == 3.0
    assert found.ci95 == pytest.approx((3.0, 3.0))


@pytest.mark.parametrize(("rounds", "known"), [(MIN_ROUNDS - 1, False), (MIN_ROUNDS, True)])
def test_no_interval_of_a_median_from_too_few_samples(rounds: int, known: bool) -> None:
    samples = np.arange(1.0, rounds + 1)
    assert (median_interval(samples, draws=100, seed=0) is not None) == known
    assert (median_ratio(samples, samples + 1, draws=100, seed=0).ci95 is not None) == known


def dataset(users: int, share: float, kept: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(candidate, against): hits of users, of which the candidate keeps a share."""
    rng = np.random.default_rng(seed)
    old = (rng.random(users) < share).astype(float)
    return old * (rng.random(users) < kept), old


def test_pooling_weighs_data_sets_alike_or_by_users() -> None:
    """Small: 8 of 10 hits kept (0.8). Large: 300 of 300 kept (1.0)."""
    small = (np.array([1.0] * 8 + [0.0] * 2), np.ones(10))
    large = (np.ones(300), np.ones(300))
    found = pooled_ratio({"small": small, "large": large}, draws=300, seed=0)
    assert found is not None
    assert {name: ratio.ratio for name, ratio in found.each.items()} == {"small": 0.8, "large": 1.0}
    assert found.mean.ratio == pytest.approx(0.9)
    assert found.users.ratio == pytest.approx(308 / 310)
    assert found.mean.ci95 is not None and found.users.ci95 is not None
    assert found.mean.ci95[1] - found.mean.ci95[0] > found.users.ci95[1] - found.users.ci95[0]


def test_pooling_one_data_set_changes_nothing() -> None:
    new, old = dataset(400, 0.4, 0.9, 1)
    alone = resample({"new": {"m": new}, "old": {"m": old}}, draws=500, seed=3).ratio("new", "old", "m")
    found = pooled_ratio({"only": (new, old)}, draws=500, seed=3)
    assert found is not None and alone is not None
    assert found.each["only"] == alone == found.users
    assert found.mean[:2] == alone[:2]


def test_more_data_sets_make_the_mean_surer() -> None:
    parts = {str(seed): dataset(500, 0.4, 0.9, seed) for seed in range(4)}
    found = pooled_ratio(parts, draws=500, seed=0)
    assert found is not None and found.mean.ci95 is not None
    width = found.mean.ci95[1] - found.mean.ci95[0]
    assert all(
        ratio.ci95 is not None and width < 0.8 * (ratio.ci95[1] - ratio.ci95[0])
        for ratio in found.each.values()
    )
    assert found.mean.p_value is not None and found.mean.p_value < 0.01


def test_data_sets_are_drawn_independently() -> None:
    """The same users under two names: were they drawn alike, the mean would be no surer than each."""
    same = dataset(500, 0.4, 0.9, 7)
    found = pooled_ratio({"a": same, "b": same}, draws=2000, seed=0)
    assert found is not None and found.mean.ci95 is not None and found.each["a"].ci95 is not None
    widths = [ci95[1] - ci95[0] for ci95 in (found.mean.ci95, found.each["a"].ci95)]
    assert widths[0] / widths[1] == pytest.approx(2**-0.5, abs=0.08)


def test_no_pooled_ratio_where_the_reference_never_hits_somewhere() -> None:
    never = (np.ones(5), np.zeros(5))
    assert pooled_ratio({"a": dataset(50, 0.5, 0.9, 0), "b": never}, draws=100, seed=0) is None
    assert pooled_ratio({}, draws=100, seed=0) is None


def test_no_pooled_interval_where_a_data_set_has_none() -> None:
    """Of two users one hits: a quarter of the draws has no ratio."""
    few = (np.array([1.0, 1.0]), np.array([1.0, 0.0]))
    found = pooled_ratio({"few": few, "many": dataset(500, 0.5, 1.0, 0)}, draws=400, seed=0)
    assert found is not None
    assert found.each["few"].ci95 is None and found.mean.ci95 is None and found.mean.p_value is None
    assert found.users.ci95 is not None and not found.non_inferior()


def pooled(mean: float | None, *each: float | None) -> Pooled:
    """Ratios with these lower bounds."""
    ratios = [Ratio(1.0, None if low is None else (low, 1.1), None) for low in (mean, *each)]
    return Pooled({str(i): ratio for i, ratio in enumerate(ratios[1:])}, ratios[0], ratios[0])


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [
        ((0.98, 0.96, 0.99), True),
        ((0.97, 0.96, 0.99), False),  # above, not at
        ((0.98, 0.95, 0.99), False),
        ((0.96, 0.99, 0.99), False),
        ((None, 0.99, 0.99), False),
        ((0.99, None, 0.99), False),
    ],
)
def test_non_inferior_means_every_lower_bound_holds(bounds: tuple[float | None, ...], holds: bool) -> None:
    assert pooled(*bounds).non_inferior() is holds
