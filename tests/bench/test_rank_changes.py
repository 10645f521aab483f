import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.rank_changes import rank_changes, symmetric_edges
from tests.bench.judging import judged

ranks = st.lists(st.integers(0, 5000), min_size=5, max_size=5)


def test_users_are_counted_by_how_many_places_their_target_moved() -> None:
    """Changes: 0, +1, -3, +4, -40."""
    (found,) = rank_changes({"old": judged([5, 5, 5, 5, 50]), "new": judged([5, 6, 2, 9, 10])}, "old")
    assert (found.candidate, found.against, found.depth) == ("new", "old", None)
    assert (found.better, found.same, found.worse) == (2, 1, 2)
    filled = {(found.edges[i], found.edges[i + 1]): count for i, count in enumerate(found.counts) if count}
    assert filled == {
        (-100.5, -31.5): 1, (-3.5, -0.5): 1, (-0.5, 0.5): 1, (0.5, 3.5): 1, (3.5, 10.5): 1,
    }  # fmt: skip


def test_what_an_artifact_cannot_see_is_no_gain_and_no_loss() -> None:
    """Behind place 10 the list is blind: 500 -> beyond is no change, 3 -> beyond a loss of 7 places."""
    old, new = judged([500, 3, 900]), judged([600, 700, 2], depth=10)
    (found,) = rank_changes({"old": old, "new": new}, "old")
    assert (found.better, found.same, found.worse, found.depth) == (1, 1, 1, 10)
    other_way = rank_changes({"old": old, "new": new}, "new")[0]
    assert (other_way.better, other_way.same, other_way.worse, other_way.depth) == (1, 1, 1, 10)


def test_of_two_lists_the_shorter_one_decides() -> None:
    (found,) = rank_changes({"a": judged([8, 1], depth=20), "b": judged([3, 1], depth=5)}, "a")
    assert (found.better, found.same, found.depth) == (1, 1, 5)


@given(ranks, ranks)
def test_everybody_is_counted_once_and_the_other_way_round_is_the_mirror_image(
    one: list[int], other: list[int]
) -> None:
    both = {"one": judged(one), "other": judged(other)}
    there, back = rank_changes(both, "one")[0], rank_changes(both, "other")[0]
    assert sum(there.counts) == there.better + there.same + there.worse == 5
    assert there.counts == back.counts[::-1] and there.edges == back.edges
    assert (there.better, there.worse) == (back.worse, back.better)


@given(st.integers(0, 10**7))
def test_edges_are_symmetric_hold_the_largest_change_and_lie_between_whole_numbers(largest: int) -> None:
    edges = symmetric_edges(largest)
    assert np.array_equal(edges, -edges[::-1])
    assert edges[-1] > largest and (np.diff(edges) >= 1).all()
    assert (edges % 1 == 0.5).all()


def test_all_candidates_have_the_same_edges_and_the_first_seed_counts() -> None:
    far = judged({4: [2000, 0], 5: [0, 0]})
    found = rank_changes({"old": judged([0, 0]), "far": far, "near": judged([1, 0])}, "old")
    assert [each.candidate for each in found] == ["far", "near"]
    assert found[0].edges == found[1].edges
    assert found[0].worse == 1


def test_no_reference_no_changes() -> None:
    assert rank_changes({"new": judged([1])}, "gone") == []
