import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artifact import open_artifact
from export.measure import measure_parity, samples
from export.parity import ParityConfig, compare, gate, ndcg, ndcg_change, summary, top_rows
from recommender.data.prepared import Prepared
from recommender.errors import GateError
from recommender.models.interface import SequentialRecommender
from recommender.scoring import TopK
from tests.export.fixtures import MAX_LENGTH, perturb, reseal

ATOL = 1e-4


def reference(*lines: list[float]) -> np.ndarray:
    """Scores with row 0 masked in front."""
    return np.array([[-np.inf, *line] for line in lines], np.float32)


def answer(scores: np.ndarray, *lists: list[int]) -> TopK:
    items = np.array(lists)
    return TopK(items, np.take_along_axis(scores, items, axis=1).astype(np.float32))


def numbers(scores: np.ndarray, given: TopK, depth: int = 10) -> dict[str, float]:
    return summary([compare(scores, given, atol=ATOL, depth=depth)]) | {"ndcg10_change": 0.0}


def test_the_reference_agrees_with_itself() -> None:
    scores = reference([0.1, 0.5, 0.3, 0.2], [4.0, 3.0, 2.0, 1.0])
    found = numbers(scores, answer(scores, [2, 3, 4], [1, 2, 3]), depth=3)
    assert found["top10_overlap"] == found["first_agreement"] == found["order_agreement_outside_margin"] == 1
    assert found["max_score_difference"] == found["forbidden_items"] == 0
    gate(found, ParityConfig())


def test_another_order_inside_the_margin_passes() -> None:
    scores = reference([0.5, 0.50005, 0.3, 0.49996, 0.1, -1.0])
    found = numbers(scores, answer(scores, [1, 2]), depth=2)  # 2 before 1 by 5e-5, which is noise
    assert found["first_agreement"] == 0 and found["first_agreement_outside_margin"] == 1
    assert found["order_agreement_outside_margin"] == 1
    replaced = numbers(scores, answer(scores, [2, 4]), depth=2)  # 4 instead of 1, by 4e-5
    assert replaced["top10_overlap"] == 0.5 and replaced["top10_overlap_outside_margin"] == 1
    for one in (found, replaced):
        gate(one, ParityConfig())


def test_the_margin_grows_with_the_scores() -> None:
    large = reference([500.0, 500.03, 300.0])
    small = reference([0.5, 0.53, 0.3])
    tiny = reference([5e-5, 5.3e-5, 3e-5])
    assert numbers(large, answer(large, [1, 2]), depth=2)["first_agreement_outside_margin"] == 1
    for scores in (small, tiny):
        assert numbers(scores, answer(scores, [1, 2]), depth=2)["first_agreement_outside_margin"] == 0


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([2, 1, 3], "first_agreement_outside_margin is 0"),
        ([1, 3, 2], "order_agreement_outside_margin is 0.66"),
        ([1, 2, 5], "top10_overlap_outside_margin is 0.66"),
        ([1, 2, 2], "forbidden_items is 1"),  # twice
        ([1, 2, 6], "forbidden_items is 1"),  # masked
        ([1, 2, 0], "top10_overlap_outside_margin is 0.66"),  # too short
    ],
)
def test_each_kind_of_disagreement_fails_the_gate(items: list[int], message: str) -> None:
    scores = reference([0.9, 0.8, 0.7, 0.6, 0.5, -np.inf])
    given = TopK(
        np.array([items]), np.nan_to_num(np.take_along_axis(scores, np.array([items]), 1), neginf=0.4)
    )
    with pytest.raises(GateError, match=message) as caught:
        gate(numbers(scores, given, depth=3), ParityConfig())
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_score_error", 0.01),
        ("ndcg10_change", -0.01),
        ("ndcg10_change", 0.01),
        ("max_score_error", float("nan")),
        ("top10_overlap_outside_margin", float("nan")),
    ],
)
def test_each_number_is_gated_both_ways(name: str, value: float) -> None:
    scores = reference([0.9, 0.8, 0.7])
    good = numbers(scores, answer(scores, [1, 2]))
    gate(good, ParityConfig())
    with pytest.raises(GateError, match=name):
        gate(good | {name: value}, ParityConfig())


def test_a_gate_without_its_numbers_is_no_gate() -> None:
    with pytest.raises(KeyError):
        gate({}, ParityConfig())


def test_users_with_next_to_nothing_left_are_compared_on_what_is_left() -> None:
    scores = reference([0.9, -np.inf, -np.inf], [-np.inf] * 3)
    found = compare(scores, TopK(np.array([[1, 0, 0], [0, 0, 0]]), scores[:, [1, 0, 0]]), atol=ATOL)
    assert found.overlap_outside.tolist() == [1.0, 1.0]
    assert found.first_outside.all() and found.order_outside.tolist() == [1.0, 1.0]
    assert found.forbidden.tolist() == [0, 0] and found.score_difference.tolist() == [0.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_top_rows_are_sorted_by_score_then_row(seed: int, k: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 5, (4, 12)).astype(np.float32)
    for line, rows in zip(scores, top_rows(scores, k), strict=True):
        assert rows.tolist() == sorted(range(12), key=lambda row: (-line[row], row))[:k]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 4e-5))
def test_noise_below_half_the_margin_always_passes(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    crowded = rng.normal(0, 1e-3, (5, 30))  # noise does change ranks; the margin comes from -1
    scores = reference(*np.column_stack([crowded, np.full(5, -1.0)]).tolist())
    noisy = scores + rng.uniform(-noise, noise, scores.shape).astype(np.float32)
    given_items = top_rows(noisy, 10)
    found = numbers(scores, TopK(given_items, np.take_along_axis(noisy, given_items, axis=1)))
    gate(found, ParityConfig())


def test_ndcg_of_lists_has_its_closed_form() -> None:
    lists = np.array([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    assert ndcg(lists, np.array([5, 7, 9])) == pytest.approx([1, 1 / np.log2(4), 0])


def test_a_change_comes_with_its_paired_standard_error() -> None:
    found = ndcg_change(np.array([1.0, 0.5, 0.0, 0.5]), np.array([0.5, 0.5, 0.5, 0.5]))
    assert found["ndcg10_users"] == 4 and found["ndcg10_change"] == 0.0
    assert found["ndcg10_change_error"] == pytest.approx(np.std([-0.5, 0, 0.5, 0]) / 2)
    assert ndcg_change(np.ones(3), np.ones(3) / 2)["ndcg10_change_error"] == 0.0  # all alike: no doubt


def test_a_lossy_variant_is_told_how_sure_its_loss_is() -> None:
    scores = reference([0.9, 0.8, 0.7])
    lost = numbers(scores, answer(scores, [1, 2])) | ndcg_change(np.array([1.0, 1.0]), np.array([1.0, 0.9]))
    with pytest.raises(GateError, match=r"ndcg10_change is -0\.05") as caught:
        gate(lost, ParityConfig(), lossy=True)
    assert "over 2 users" in str(caught.value.fix) and "standard error of 0.035" in str(caught.value.fix)


def test_samples_are_test_histories_of_the_lengths_they_are_named_after(prepared: Prepared) -> None:
    split = prepared.split("leave-one-out")
    found = {s.name: s for s in samples(prepared, split, MAX_LENGTH, 15, mask_seen=True, seed=0)}
    widths = {name: sample.histories.items.shape[1] for name, sample in found.items()}
    assert widths == {"length-1": 1, "short": 2, "medium": 6, "full": MAX_LENGTH, "as-is": MAX_LENGTH}
    for name in ("short", "medium", "full"):
        assert (found[name].histories.items[:, 0] != 0).all()  # 60 users: enough long ones are there
    users, positions = split.targets("test")
    held_out = [
        int(prepared.history(user)[position]) for user, position in zip(users, positions, strict=True)
    ]
    as_is = found["as-is"]
    for items, seen, target in zip(as_is.histories.items, as_is.histories.seen, as_is.targets, strict=True):
        assert items[-1] == seen[-1] and target in held_out
        assert items[-1] % 40 + 1 == target  # the log walks in a circle: histories belong to their targets


def measured(
    folder,
    model: SequentialRecommender,
    prepared: Prepared,
    *,
    quality_users: int = 4096,
    lossy: bool = False,
) -> dict[str, float]:
    return measure_parity(
        model,
        open_artifact(folder, threads=1),
        prepared,
        prepared.split("leave-one-out"),
        ParityConfig(users=25, quality_users=quality_users),
        mask_seen=True,
        seed=0,
        lossy=lossy,
    )


def test_quality_of_a_lossy_variant_is_that_of_more_users(exported, sasrec, prepared: Prepared) -> None:
    users = {
        (count, lossy): measured(exported, sasrec, prepared, quality_users=count, lossy=lossy)["ndcg10_users"]
        for count, lossy in [(40, True), (10, True), (10**6, True), (40, False)]
    }
    everyone = len(prepared.split("leave-one-out").targets("test")[0])
    assert users == {(40, True): 40, (10, True): 25, (10**6, True): everyone, (40, False): 25}


def test_the_exported_graph_passes_on_real_histories(exported, sasrec, prepared: Prepared) -> None:
    found = measured(exported, sasrec, prepared)
    gate(found, ParityConfig())
    assert found["ndcg10_reference"] == found["ndcg10_exported"]
    assert set(found["by"]) == {
        f"{length}/{way}"
        for length in ("length-1", "short", "medium", "full", "as-is")
        for way in ("batch-1", "batch-7", "batch-32", "padded")
    }


def test_a_perturbed_weight_fails_the_gate(folder, sasrec, prepared: Prepared) -> None:
    perturb(folder / "catalogue-1/fp32.onnx", scale=0.05)
    reseal(folder)
    with pytest.raises(GateError, match="does not rank like its model: top10_overlap_outside_margin"):
        gate(measured(folder, sasrec, prepared), ParityConfig())


def test_noise_in_the_weights_far_below_the_margin_passes(folder, sasrec, prepared: Prepared) -> None:
    perturb(folder / "catalogue-1/fp32.onnx", scale=1e-7)
    reseal(folder)
    found = measured(folder, sasrec, prepared)
    assert found["max_score_difference"] > 0
    gate(found, ParityConfig())
