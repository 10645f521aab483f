"""Magnitude, Wanda, SparseGPT: exact counts, invariances, agreement with brute force on tiny matrices."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from compress.sparsity import (
    DAMPING,
    Pattern,
    Pruned,
    inverse_factor,
    magnitude,
    pruned_count,
    sparsegpt,
    wanda,
)
from recommender.models.zeros import is_2_to_4

OUT, IN, TOKENS = 6, 16, 60
PATTERNS: tuple[Pattern, ...] = ("unstructured", "2:4")
SHARES = (Fraction(1, 4), Fraction(1, 2), Fraction(7, 10), Fraction(29, 100))

Prune = Callable[..., Pruned]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, inputs: int, seed: int = 0) -> Tensor:
    """Inputs that a few directions explain, as those of a trained model are."""
    mixing = random(inputs // 2, inputs, seed=seed + 1)
    return random(tokens, inputs // 2, seed=seed) @ mixing + 0.3 * random(tokens, inputs, seed=seed + 2)


def relative_error(weight: Tensor, pruned: Tensor, x: Tensor) -> float:
    return float((x @ (weight - pruned).T).norm() / (x @ weight.T).norm())


def methods(x: Tensor) -> dict[str, Prune]:
    return {
        "magnitude": magnitude,
        "magnitude per row": lambda w, s, **more: magnitude(w, s, per_row=True, **more),
        "wanda": lambda w, s, **more: wanda(w, x.norm(dim=0), s, **more),
        "sparsegpt": lambda w, s, **more: sparsegpt(w, x.T @ x, s, **more),
    }


ALL = tuple(methods(torch.ones(1, IN)))


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("name", ["magnitude per row", "wanda"])
def test_every_row_loses_the_share_rounded_down(name: str, share: Fraction) -> None:
    kept = methods(random(TOKENS, IN))[name](random(OUT, IN), float(share)).kept
    assert (~kept).sum(1).tolist() == [math.floor(IN * share)] * OUT


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_the_matrix_loses_the_share_exactly_even_where_weights_tie(name: str, share: Fraction) -> None:
    ties = torch.full((OUT, IN), 2.0)
    for weight in (random(OUT, IN), ties):
        pruned = methods(random(TOKENS, IN))[name](weight, float(share))
        wanted = (
            OUT * math.floor(IN * share) if "row" in name or name == "wanda" else math.floor(OUT * IN * share)
        )
        assert int((~pruned.kept).sum()) == wanted
        assert torch.equal(pruned.weight == 0, ~pruned.kept)


def test_a_share_that_floats_just_miss_counts_whole() -> None:
    assert 0.29 * 100 < 29
    assert pruned_count(100, 0.29) == 29


def test_constant_norms_make_wanda_magnitude_by_row() -> None:
    weight = random(OUT, IN)
    for pattern in PATTERNS:
        ours = wanda(weight, torch.full((IN,), 3.0), 0.5, pattern=pattern)
        assert torch.equal(ours.kept, magnitude(weight, 0.5, pattern=pattern, per_row=True).kept)


def test_magnitude_of_the_matrix_takes_the_smallest_of_all_rows() -> None:
    weight = random(OUT, IN)
    weight[0] *= 1e-3
    kept = magnitude(weight, 0.25).kept
    assert not kept[0].any()
    assert float(weight[kept].abs().min()) > float(weight[~kept].abs().max())


def test_wanda_is_the_loop_of_the_paper() -> None:
    weight, x = random(OUT, IN), random(TOKENS, IN, seed=1)
    for count in (3, 8):
        kept = torch.ones(OUT, IN, dtype=torch.bool)
        for row in range(OUT):
            score = {
                j: abs(float(weight[row, j])) * math.sqrt(float((x[:, j] ** 2).sum())) for j in range(IN)
            }
            for j in sorted(score, key=lambda j: score[j])[:count]:
                kept[row, j] = False
        pruned = wanda(weight, x.norm(dim=0), count / IN)
        assert torch.equal(pruned.kept, kept)
        assert torch.equal(pruned.weight, torch.where(kept, weight, 0))


def test_wanda_2_to_4_is_the_loop_over_groups() -> None:
    weight, norms = random(OUT, IN), random(IN, seed=1).abs()
    kept = wanda(weight, norms, 0.5, pattern="2:4").kept
    for row in range(OUT):
        for first in range(0, IN, 4):
            score = (weight[row].abs() * norms)[first : first + 4].tolist()
            best = sorted(range(4), key=lambda j: -score[j])[:2]
            assert [bool(k) for k in kept[row, first : first + 4]] == [j in best for j in range(4)]


def test_an_input_of_large_values_is_protected() -> None:
    weight, x = random(OUT, IN), random(TOKENS, IN, seed=1)
    assert not wanda(weight, x.norm(dim=0), 0.5).kept[:, 5].all()
    x[:, 5] *= 1e6
    assert wanda(weight, x.norm(dim=0), 0.5).kept[:, 5].all()


def test_permuting_inputs_permutes_the_mask() -> None:
    weight, x = random(OUT, IN), random(TOKENS, IN, seed=1)
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(2))
    for prune in (lambda w, x: wanda(w, x.norm(dim=0), 0.5), lambda w, x: magnitude(w, 0.5)):
        assert torch.equal(prune(weight[:, order], x[:, order]).kept, prune(weight, x).kept[:, order])


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_a_no_op_and_everything_is_a_zero_matrix(name: str) -> None:
    weight, prune = random(OUT, IN), methods(random(TOKENS, IN, seed=1))[name]
    assert torch.equal(prune(weight, 0.0).weight, weight)
    assert not prune(weight, 1.0).weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_type_and_shape_stay_and_the_given_matrix_too(name: str, dtype: torch.dtype) -> None:
    weight = random(OUT, IN).to(dtype)
    before = weight.clone()
    for pattern in PATTERNS:
        pruned = methods(random(TOKENS, IN, seed=1))[name](weight, 0.5, pattern=pattern)
        assert (pruned.weight.dtype, pruned.weight.shape) == (dtype, weight.shape)
        assert pruned.kept.dtype == torch.bool
        assert torch.equal(weight, before)
        if name != "sparsegpt":  # what survives is bit for bit what it was
            assert torch.equal(pruned.weight[pruned.kept], weight[pruned.kept])


@pytest.mark.parametrize("name", ALL)
def test_2_to_4_leaves_two_in_every_group_and_a_second_time_changes_nothing(name: str) -> None:
    prune = methods(correlated(TOKENS, IN))[name]
    pruned = prune(random(OUT, IN), 0.5, pattern="2:4")
    assert (pruned.weight.reshape(-1, 4) != 0).sum(1).tolist() == [2] * (OUT * IN // 4)
    assert is_2_to_4(pruned.weight) and not is_2_to_4(random(OUT, IN))
    again = prune(pruned.weight, 0.5, pattern="2:4")
    assert torch.equal(again.weight, pruned.weight) and torch.equal(again.kept, pruned.kept)


@pytest.mark.parametrize("name", ALL)
def test_zeros_that_are_there_count_and_stay(name: str) -> None:
    prune = methods(correlated(TOKENS, IN))[name]
    first = prune(random(OUT, IN), 0.5)
    again, more = prune(first.weight, 0.5), prune(first.weight, 0.75)
    assert torch.equal(again.weight, first.weight)
    assert not more.weight[~first.kept].any()
    assert int((more.weight == 0).sum()) == OUT * IN * 3 // 4
    structured = prune(magnitude(random(OUT, IN), 0.25).weight, 0.5, pattern="2:4")
    assert is_2_to_4(structured.weight)


def test_norms_of_zero_do_not_let_more_go_than_asked() -> None:
    weight = magnitude(random(OUT, IN), 0.5, pattern="2:4").weight
    assert torch.equal(wanda(weight, torch.zeros(IN), 0.5, pattern="2:4").weight, weight)


class TestSparseGpt:
    def brute_force(
        self, weight: Tensor, hessian: Tensor, sparsity: float, pattern: Pattern, tile: int
    ) -> Tensor:
        """Column by column in float64, the inverse of what is left of the Hessian made anew each time."""
        damped = hessian.double()
        damped = damped + DAMPING * damped.diagonal().mean() * torch.eye(len(damped), dtype=torch.float64)
        work = weight.double().clone()
        rows, inputs = work.shape
        least = [float(damped[j:, j:].inverse()[0, 0]) for j in range(inputs)]
        gone: set[tuple[int, int]] = set()
        for j in range(inputs):
            span = tile if pattern == "unstructured" else 4
            if j % span == 0:
                here = [(i, k) for i in range(rows) for k in range(j, min(j + span, inputs))]
                score = {(i, k): float(work[i, k]) ** 2 / least[k] for i, k in here}
                groups = (
                    [here] if pattern == "unstructured" else [here[n : n + 4] for n in range(0, len(here), 4)]
                )
                for group in groups:
                    count = math.floor(len(group) * sparsity)
                    gone |= set(sorted(group, key=lambda place: score[place])[:count])
            inverse = damped[j:, j:].inverse()
            for i in range(rows):
                if (i, j) in gone:
                    work[i, j:] -= work[i, j] / inverse[0, 0] * inverse[0]
                    work[i, j] = 0.0
        return work

    @pytest.mark.parametrize("pattern", PATTERNS)
    @pytest.mark.parametrize("tile", [4, 8, 128])
    def test_it_is_the_column_by_column_update(self, tile: int, pattern: Pattern) -> None:
        weight, x = random(OUT, IN), correlated(TOKENS, IN)
        ours = sparsegpt(weight, x.T @ x, 0.5, pattern=pattern, tile=tile)
        theirs = self.brute_force(weight, x.T @ x, 0.5, pattern, tile)
        assert torch.equal(ours.weight == 0, theirs == 0)
        torch.testing.assert_close(ours.weight.double(), theirs, atol=1e-4, rtol=1e-3)

    def test_no_single_row_is_better_made_up_for(self) -> None:
        """The last column that goes is made up for as least squares would, given the columns before it."""
        x, weight = correlated(TOKENS, 4).double(), random(1, 4).double()
        hessian = x.T @ x
        pruned = sparsegpt(weight, hessian, 0.25, damping=0.0)
        (column,) = (~pruned.kept[0]).nonzero().flatten().tolist()
        free = list(range(column + 1, 4))
        target = x @ weight[0] - x[:, :column] @ weight[0, :column]
        if free:
            best = torch.linalg.lstsq(x[:, free], target).solution
            torch.testing.assert_close(pruned.weight[0, free].double(), best, atol=1e-4, rtol=1e-3)

    def test_the_error_is_below_that_of_magnitude_and_wanda_at_the_same_density(self) -> None:
        for pattern in PATTERNS:
            losses: dict[str, list[float]] = {}
            for seed in range(20):
                weight, x = random(32, 32, seed=seed), correlated(256, 32, seed=100 + seed)
                for name, prune in methods(x).items():
                    pruned = prune(weight, 0.5, pattern=pattern)
                    assert int((pruned.weight == 0).sum()) == 512
                    losses.setdefault(name, []).append(relative_error(weight, pruned.weight, x))
            ours = torch.tensor(losses.pop("sparsegpt"))
            for others in map(torch.tensor, losses.values()):
                assert int((ours < others).sum()) >= 18 and float((ours / others).mean()) < 0.95

    @pytest.mark.parametrize("scale", [0.01, 1.0, 500.0])
    def test_with_independent_inputs_it_is_magnitude_by_tile(self, scale: float) -> None:
        weight = random(OUT, IN)
        pruned = sparsegpt(weight, scale * torch.eye(IN), 0.5, tile=8)
        by_tile = [magnitude(part, 0.5) for part in weight.split(8, dim=1)]
        assert torch.equal(pruned.kept, torch.cat([part.kept for part in by_tile], dim=1))
        assert torch.equal(pruned.weight, torch.cat([part.weight for part in by_tile], dim=1))

    @pytest.mark.parametrize("scale", [1e-6, 1e6])
    def test_a_common_factor_of_the_inputs_changes_nothing_beside_dead_ones(self, scale: float) -> None:
        x, weight = correlated(TOKENS, IN), random(OUT, IN)
        x[:, [2, 9]] = 0
        one, other = (sparsegpt(weight, factor * (x.T @ x).double(), 0.5) for factor in (1.0, scale))
        assert torch.equal(one.kept, other.kept)
        torch.testing.assert_close(one.weight, other.weight, atol=1e-5, rtol=1e-4)

    def test_inputs_that_are_always_zero_lose_their_weights(self) -> None:
        x = correlated(TOKENS, IN)
        x[:, [2, 9]] = 0
        pruned = sparsegpt(random(OUT, IN), x.T @ x, 0.5)
        assert not pruned.weight[:, [2, 9]].any() and pruned.weight.isfinite().all()

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_fewer_tokens_than_inputs_give_finite_weights(self, pattern: Pattern) -> None:
        x = random(3, IN)
        assert sparsegpt(random(OUT, IN), x.T @ x, 0.5, pattern=pattern).weight.isfinite().all()

    def test_the_factor_is_that_of_the_inverse(self) -> None:
        x = correlated(TOKENS, IN).double()
        factor = inverse_factor(x.T @ x, damping=0.0)
        assert torch.equal(factor, factor.triu())
        torch.testing.assert_close(factor.T @ factor, (x.T @ x).inverse())


class TestRefusals:
    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("sparsity", [-0.1, 1.01, math.nan])
    def test_a_share_that_is_none(self, name: str, sparsity: float) -> None:
        with pytest.raises(ValueError, match="not between 0 and 1"):
            methods(torch.eye(IN))[name](random(OUT, IN), sparsity)

    @pytest.mark.parametrize("name", ALL)
    def test_2_to_4_of_another_share_or_width(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"half of the weights, not 0\.6"):
            methods(torch.eye(IN))[name](random(OUT, IN), 0.6, pattern="2:4")
        with pytest.raises(ValueError, match="that 4 divides, not 6"):
            methods(torch.eye(6))[name](random(OUT, 6), 0.5, pattern="2:4")

    def test_statistics_of_another_matrix(self) -> None:
        with pytest.raises(ValueError, match="norms"):
            wanda(random(OUT, IN), torch.ones(IN - 1), 0.5)
        with pytest.raises(ValueError, match="Hessian"):
            sparsegpt(random(OUT, IN), torch.eye(IN - 1), 0.5)
        with pytest.raises(ValueError, match="tile of 6"):
            sparsegpt(random(OUT, IN), torch.eye(IN), 0.5, tile=6)

    def test_a_hessian_that_is_broken(self) -> None:
        with pytest.raises(ValueError, match="not finite"):
            inverse_factor(torch.full((4, 4), math.nan))
        with pytest.raises(ValueError, match="not positive definite"):
            inverse_factor(-torch.eye(4))
