"""Depth scores and choices on streams whose answer is known."""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.depth import (
    Streams,
    angular_distances,
    block_influence,
    every_cut,
    greedy_removals,
    keep_around_cut,
    keep_first,
    keep_greedy,
    keep_influential,
    keep_uniform,
    last_real,
    row_angles,
    row_cosines,
)
from recommender.errors import StageError


def random_streams(layers: int, *, users: int = 6, length: int = 5, width: int = 8, seed: int = 0) -> Streams:
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(users, length, width, generator=generator)]
    for _ in range(layers):
        states.append(states[-1] + 0.7 * torch.randn(users, length, width, generator=generator))
    lengths = torch.arange(users) % length + 1
    return Streams(states, torch.arange(length) >= length - lengths.unsqueeze(1))


def mapped(streams: Streams, function: object) -> Streams:
    assert callable(function)
    return Streams([function(state) for state in streams.states], streams.real)


def test_influence_is_zero_for_identity_and_positive_rescaling_and_two_for_negation() -> None:
    x = torch.randn(4, 3, 8)
    streams = Streams([x, x, 3.5 * x, -3.5 * x], torch.ones(4, 3, dtype=torch.bool))
    assert block_influence([streams]) == pytest.approx([0.0, 0.0, 2.0], abs=1e-6)


def test_influence_equals_the_plain_formula() -> None:
    streams = random_streams(3)
    expected = []
    for before, after in zip(streams.states, streams.states[1:], strict=False):
        values = [
            1 - float(before[u, t] @ after[u, t] / (before[u, t].norm() * after[u, t].norm()))
            for u, t in streams.real.nonzero().tolist()
        ]
        expected.append(sum(values) / len(values))
    assert block_influence([streams]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 0.01, 7.0, 1e25])
def test_scores_ignore_rotation_and_positive_scaling_of_the_stream(scale: float) -> None:
    streams = random_streams(4)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    moved = mapped(streams, lambda state: state @ rotation * scale)
    assert block_influence([moved]) == pytest.approx(block_influence([streams]), abs=1e-5)
    assert angular_distances([moved], 2) == pytest.approx(angular_distances([streams], 2), abs=1e-5)


def test_scores_do_not_depend_on_batch_size_or_padding() -> None:
    streams = random_streams(4)
    users = streams.real.shape[0]
    single = [
        Streams([state[u : u + 1] for state in streams.states], streams.real[u : u + 1]) for u in range(users)
    ]
    junk = 1e3 * torch.randn(users, 3, 8)
    padded = Streams(
        [torch.cat([junk, state], dim=1) for state in streams.states],
        torch.cat([torch.zeros(users, 3, dtype=torch.bool), streams.real], dim=1),
    )
    for other in (single, [padded]):
        assert block_influence(other) == pytest.approx(block_influence([streams]), abs=1e-6)
        assert angular_distances(other, 2) == pytest.approx(angular_distances([streams], 2), abs=1e-6)


def test_angle_is_zero_for_equal_half_for_orthogonal_one_for_opposite_vectors() -> None:
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[-4.0, 3.0]])
    assert [float(row_angles(x, other)) for other in (x, y, -x)] == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_angle_is_a_metric_on_directions(seed: int) -> None:
    a, b, c = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(row_angles(a, b), row_angles(b, a))
    assert bool((row_angles(a, c) <= row_angles(a, b) + row_angles(b, c) + 1e-6).all())
    assert row_angles(a, b).tolist() == pytest.approx(
        (torch.arccos(row_cosines(a, b).double()) / math.pi).tolist(), abs=1e-3
    )


def test_longer_cuts_obey_the_triangle_inequality_after_averaging() -> None:
    streams = random_streams(6)
    one, two, three = (angular_distances([streams], cut) for cut in (1, 2, 3))
    assert all(three[at] <= two[at] + one[at + 2] + 1e-6 for at in range(4))


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_one_pass_gives_what_a_pass_per_length_gives(layers: int) -> None:
    streams = random_streams(layers)
    halves = [
        Streams([state[part] for state in streams.states], streams.real[part])
        for part in (slice(0, 2), slice(2, 6))
    ]
    found = every_cut(halves)
    assert sum(map(len, found.values())) == layers * (layers + 1) // 2 - 1
    assert list(found) == list(range(1, layers))
    for cut, distances in found.items():
        assert distances == pytest.approx(angular_distances([streams], cut), abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_no_cut_turns_the_stream_more_than_its_parts_together(seed: int) -> None:
    found = every_cut([random_streams(6, seed=seed)])
    for whole in range(2, 6):
        for at, distance in enumerate(found[whole]):
            assert 0 <= distance <= 1
            for first in range(1, whole):
                assert distance <= found[first][at] + found[whole - first][at + first] + 1e-6


def test_angle_of_one_block_is_the_arc_cosine_of_its_influence_at_one_position() -> None:
    streams = random_streams(4, users=1, length=1)
    influence, angle = block_influence([streams]), every_cut([streams])[1]
    assert angle == pytest.approx([math.acos(1 - each) / math.pi for each in influence], abs=1e-5)


def test_angles_worked_out_by_hand() -> None:
    """A quarter turn, an eighth back, a half turn: in half turns 0.5, 0.25 and 1."""
    east, north, slope = [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]
    states = [torch.tensor([[row]]) for row in (east, north, slope, [-5.0, -5.0])]
    found = every_cut([Streams(states, torch.ones(1, 1, dtype=torch.bool))])
    assert found == {1: pytest.approx([0.5, 0.25, 1.0]), 2: pytest.approx([0.25, 0.75])}


def test_angular_distance_reads_only_the_last_real_position() -> None:
    streams = random_streams(3)
    rows = [int(row.nonzero().max()) for row in streams.real]
    ends = [torch.stack([state[u, t] for u, t in enumerate(rows)]) for state in streams.states]
    expected = [float(row_angles(ends[at], ends[at + 2]).mean()) for at in range(2)]
    assert angular_distances([streams], 2) == pytest.approx(expected, abs=1e-6)


def test_last_real_is_empty_for_a_row_without_items() -> None:
    real = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    assert last_real(real).tolist() == [[False, False, True], [True, False, False], [False, False, False]]


def test_zero_vectors_count_as_equal_to_each_other_and_orthogonal_to_others() -> None:
    zero, x = torch.zeros(1, 4), torch.ones(1, 4)
    assert [float(row_cosines(zero, zero)), float(row_cosines(zero, x)), float(row_cosines(x, zero))] == [
        1,
        0,
        0,
    ]
    assert [float(row_angles(zero, zero)), float(row_angles(zero, x))] == pytest.approx([0, 0.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_streams_are_refused_by_name_but_not_in_the_padding(bad: float) -> None:
    streams = random_streams(3)
    padding = (~streams.real).nonzero()[0].tolist()
    streams.states[2][padding[0], padding[1], 0] = bad
    assert all(math.isfinite(score) for score in block_influence([streams]))
    streams.states[2][0, -1, 0] = bad
    with pytest.raises(StageError, match="after block 1"):
        block_influence([streams])
    with pytest.raises(StageError, match="after block 1"):
        angular_distances([streams], 1)


@pytest.mark.parametrize(("layers", "cut"), [(4, 1), (4, 3), (7, 2)])
def test_there_is_one_candidate_per_contiguous_cut(layers: int, cut: int) -> None:
    distances = angular_distances([random_streams(layers)], cut)
    assert len(distances) == layers - cut + 1
    kept = keep_around_cut(distances, cut)
    assert kept == sorted(set(kept)) and len(kept) == layers - cut
    start = distances.index(min(distances))
    assert kept == [block for block in range(layers) if block not in range(start, start + cut)]


@pytest.mark.parametrize("cut", [0, 4, 5])
def test_cutting_nothing_or_everything_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        angular_distances([random_streams(4)], cut)


@pytest.mark.parametrize("choose", [keep_first, keep_uniform, lambda n, k: keep_influential([0.5] * n, k)])
@pytest.mark.parametrize("keep", [0, 5, -1])
def test_choices_refuse_to_keep_nothing_or_more_than_there_is(choose: object, keep: int) -> None:
    assert callable(choose)
    with pytest.raises(ValueError, match="cannot keep"):
        choose(4, keep)


@given(st.integers(1, 40), st.data())
def test_uniform_choice_is_strictly_increasing_from_first_to_last(layers: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, layers))
    kept = keep_uniform(layers, keep)
    assert len(kept) == keep and kept == sorted(set(kept)) and kept[0] == 0
    assert keep == 1 or kept[-1] == layers - 1
    gaps = [b - a for a, b in pairwise(kept)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_first_and_influential_choices_are_what_they_say() -> None:
    assert keep_first(6, 3) == [0, 1, 2]
    assert keep_influential([0.1, 0.5, 0.2, 0.4], 2) == [1, 3]
    assert keep_influential([0.1, 0.1, 0.1], 2) == [0, 1]
    assert keep_around_cut([0.3, 0.3, 0.3], 2) == [0, 1]


def table_loss(seed: int, layers: int) -> object:
    """A loss per subset, drawn at random: no structure that a search could lean on."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[tuple[int, ...], float] = {
        kept: float(torch.rand((), generator=generator))
        for size in range(1, layers + 1)
        for kept in combinations(range(layers), size)
    }
    return lambda kept: values[tuple(kept)]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_first_removal_is_the_brute_force_minimum(seed: int) -> None:
    evaluate = table_loss(seed, 5)
    assert callable(evaluate)
    losses = {gone: evaluate([block for block in range(5) if block != gone]) for gone in range(5)}
    first, second = greedy_removals(5, 3, evaluate)
    assert first.block == min(losses, key=lambda block: losses[block])
    assert first.loss == losses[first.block]
    left = [block for block in range(5) if block not in (first.block, second.block)]
    assert second.loss == evaluate(left) and keep_greedy(5, 3, evaluate) == left


def test_greedy_barriers_protect_the_first_and_last_blocks_still_standing() -> None:
    seen: list[Sequence[int]] = []

    def evaluate(kept: Sequence[int]) -> float:
        seen.append(list(kept))
        return float(len(kept) * 10 - sum(kept))  # would love to drop the first blocks

    removed = [removal.block for removal in greedy_removals(5, 3, evaluate, barriers=(1, 1))]
    assert removed == [1, 2]
    assert all(kept[0] == 0 and kept[-1] == 4 for kept in seen)
    with pytest.raises(ValueError, match="barriers"):
        greedy_removals(5, 1, evaluate, barriers=(1, 1))


def test_greedy_refuses_a_loss_that_is_not_a_number() -> None:
    with pytest.raises(StageError, match="without block 2 is NaN"):
        greedy_removals(3, 2, lambda kept: math.nan if 2 not in kept else 1.0)


def test_greedy_can_miss_the_best_subset() -> None:
    """Why the docs call it greedy: after the best single removal the best pair may be out of reach."""
    losses = {(1, 2): 0.1, (0, 2): 0.5, (0, 1): 0.5, (2,): 0.9, (1,): 0.8, (0,): 0.2}
    assert keep_greedy(3, 1, lambda kept: losses[tuple(kept)]) == [1]


def identity_streams(identities: Sequence[int], layers: int) -> Streams:
    states: list[Tensor] = [torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))]
    for block in range(layers):
        change = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(block))
        states.append(states[-1] if block in identities else states[-1] + change)
    return Streams(states, torch.ones(4, 5, dtype=torch.bool))


@pytest.mark.parametrize("identities", [(0, 1), (2, 3), (4, 5)])
def test_contiguous_identity_blocks_are_found_by_influence_and_angle(identities: tuple[int, int]) -> None:
    streams = identity_streams(identities, 6)
    expected = [block for block in range(6) if block not in identities]
    assert keep_influential(block_influence([streams]), 4) == expected
    assert keep_around_cut(angular_distances([streams], 2), 2) == expected
