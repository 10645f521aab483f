"""Scores and selections of width pruning, against what they are defined as."""

import pytest
import torch

from compress.narrowing.cut import Segment, segments
from compress.narrowing.layout import LAYOUTS, Widths, aimed_at, targets_problem, widths_of, with_widths
from compress.narrowing.scores import (
    MeanMagnitude,
    first_order,
    head_magnitudes,
    keep_heads,
    keep_top,
    second_order,
    share_kept,
    sum_along,
)
from recommender.models.config import LlmConfig

WIDTHS = Widths(hidden=6, heads=4, kv_heads=2, head_dim=3, ffn=5)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_magnitude_is_the_mean_over_a_sequence_and_l2_over_sequences() -> None:
    seen = MeanMagnitude()
    values = torch.tensor([[[1.0, -2.0], [-3.0, 2.0]], [[4.0, 0.0], [0.0, 0.0]]])
    seen.add(values, torch.ones(2, 2, dtype=torch.bool))
    assert torch.allclose(seen.scores(), torch.tensor([8.0, 4.0], dtype=torch.float64).sqrt())


def test_magnitude_does_not_see_padding_or_batches() -> None:
    values = torch.randn(5, 7, 3, generator=generator())
    real = torch.arange(7) >= torch.tensor([[0], [2], [4], [6], [3]])
    together, apart = MeanMagnitude(), MeanMagnitude()
    together.add(values, real)
    for user in range(5):
        begin = int((~real[user]).sum())
        apart.add(values[user : user + 1, begin:], real[user : user + 1, begin:])
    assert torch.allclose(together.scores(), apart.scores())
    noisy = MeanMagnitude()
    noisy.add(torch.where(real.unsqueeze(-1), values, torch.nan), real)  # what padding holds is not read
    assert torch.equal(together.scores(), noisy.scores())


def test_a_sequence_without_an_item_adds_nothing_and_none_at_all_is_an_error() -> None:
    seen = MeanMagnitude()
    with pytest.raises(ValueError, match="no activation"):
        seen.scores()
    seen.add(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(seen.scores(), torch.zeros(3, dtype=torch.float64))


def test_a_head_is_the_norm_over_its_channels() -> None:
    assert head_magnitudes(torch.tensor([3.0, 4.0, 0.0, 1.0]), 2).tolist() == [5.0, 1.0]


def test_first_order_is_the_change_of_a_linear_loss() -> None:
    weight, slope = torch.randn(3, 4, generator=generator()), torch.randn(3, 4, generator=generator())
    loss = (weight * slope).sum()
    without = loss - weight[1, 2] * slope[1, 2]
    assert first_order(weight, slope)[1, 2] == pytest.approx(float((loss - without).abs()), rel=1e-5)
    assert first_order(weight, slope).dtype == torch.float64


def test_second_order_is_the_square_times_the_curvature() -> None:
    weight = torch.tensor([2.0, -3.0])
    assert second_order(weight, torch.tensor([0.5, 1.0])).tolist() == [2.0, 9.0]


def test_sum_along_an_axis_leaves_that_axis() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert sum_along(values, 0).tolist() == [3.0, 12.0]
    assert sum_along(values, -1).tolist() == [3.0, 5.0, 7.0]
    assert sum_along(values[0], 0).tolist() == [0.0, 1.0, 2.0]


def test_the_highest_stay_in_order_and_ties_go_to_the_lower_index() -> None:
    assert keep_top(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 3]
    assert keep_top(torch.ones(5), 3).tolist() == [0, 1, 2]


def test_every_key_value_head_keeps_as_many_heads() -> None:
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 2.0, 3.0])
    heads, kv = keep_heads(scores, torch.zeros(2), keep_heads=4, keep_groups=2)
    assert (heads.tolist(), kv.tolist()) == ([0, 1, 4, 5], [0, 1])


def test_a_whole_group_goes_by_its_best_heads_and_its_own_score() -> None:
    scores = torch.tensor([9.0, 0.0, 5.0, 5.0, 1.0, 1.0])
    one = keep_heads(scores, torch.zeros(3), keep_heads=2, keep_groups=2)
    assert [part.tolist() for part in one] == [[0, 2], [0, 1]]
    two = keep_heads(scores, torch.zeros(3), keep_heads=2, keep_groups=1)
    assert [part.tolist() for part in two] == [[2, 3], [1]]
    own = keep_heads(scores, torch.tensor([0.0, 0.0, 50.0]), keep_heads=2, keep_groups=1)
    assert [part.tolist() for part in own] == [[4, 5], [2]]


def test_heads_of_their_own_keys_are_simply_the_best() -> None:
    scores = torch.tensor([1.0, 4.0, 3.0, 2.0])
    heads, kv = keep_heads(scores, torch.zeros(4), keep_heads=2, keep_groups=2)
    assert heads.tolist() == kv.tolist() == [1, 2]


def test_the_share_of_nothing_is_all() -> None:
    assert share_kept(torch.tensor([1.0, 3.0]), torch.tensor([1])) == 0.75
    assert share_kept(torch.zeros(2), torch.tensor([0])) == 1.0


def spelled(parts: list[Segment]) -> str:
    return " ".join(f"{part.structure[0]}{member}" for part in parts for member in part.members.tolist())


def test_axes_name_the_member_of_every_coordinate() -> None:
    widths = Widths(hidden=2, heads=2, kv_heads=1, head_dim=2, ffn=2)
    assert spelled(segments("q+k+v", widths)) == "h0 h0 h1 h1 k0 k0 k0 k0"
    assert spelled(segments("gate+up", widths)) == "f0 f1 f0 f1"
    assert spelled(segments("qkv by head", widths)) == "h0 h0 h0 h0 h0 h0 h1 h1 h1 h1 h1 h1"


TARGETS = [
    ({"ffn": 3}, {"ffn": 3}),
    ({"ffn": 0.5}, {"ffn": 2}),
    ({"heads": 2}, {"heads": 2}),
    ({"heads": 0.5, "hidden": 0.5}, {"heads": 2, "hidden": 3}),
    ({"kv_heads": 1}, {"kv_heads": 1, "heads": 2}),
    ({"kv_heads": 1, "heads": 1}, {"kv_heads": 1, "heads": 1}),
]


@pytest.mark.parametrize(("targets", "expected"), TARGETS)
def test_targets_are_numbers_or_shares(targets: dict[str, float], expected: dict[str, int]) -> None:
    assert aimed_at(WIDTHS, targets) == WIDTHS._replace(**expected)


def test_shares_are_not_cut_short_by_rounding() -> None:
    assert aimed_at(WIDTHS._replace(ffn=100), {"ffn": 0.29}).ffn == 29


def test_heads_with_their_own_keys_take_these_along() -> None:
    widths = WIDTHS._replace(kv_heads=4)
    assert aimed_at(widths, {"heads": 3}) == widths._replace(heads=3, kv_heads=3)


WIDE = Widths(hidden=32, heads=8, kv_heads=4, head_dim=4, ffn=64)
REFUSED = [
    ("llama", {"ffn": 65}, "ffn", "cannot keep 65: there are 64"),
    ("llama", {"ffn": 4}, "ffn", "too narrow"),
    ("llama", {"hidden": 0.01}, "hidden", "cannot keep 0: there are 32"),
    ("llama", {"heads": 6}, "heads", "6 heads cannot be shared equally by 4 key/value heads"),
    ("llama", {"kv_heads": 2, "heads": 8}, "heads", "2 key/value heads serve 4 heads at most, not 8"),
    ("llama", {"hidden": 20}, "hidden", "8 does not divide 20"),
    ("gemma2", {"hidden": 20}, "hidden", "8 does not divide 20"),
    ("gpt2", {"hidden": 16}, "hidden", "8 heads x 4 are not 16"),
    ("opt", {"heads": 4}, "heads", "4 heads x 4 are not 32"),
]


@pytest.mark.parametrize(("family", "targets", "place", "message"), REFUSED)
def test_impossible_widths_are_named(
    family: str, targets: dict[str, float], place: str, message: str
) -> None:
    widths = WIDE if family not in ("gpt2", "opt") else WIDE._replace(kv_heads=8)
    found = targets_problem(widths, aimed_at(widths, targets), family)
    assert found is not None and found[0] == place and message in found[1]


def test_possible_widths_are_not() -> None:
    assert targets_problem(WIDE, aimed_at(WIDE, {"heads": 4, "hidden": 20}), "llama") is None
    assert targets_problem(WIDE, aimed_at(WIDE, {"hidden": 20}), "qwen3") is None
    alone = WIDE._replace(kv_heads=8)
    assert targets_problem(alone, aimed_at(alone, {"heads": 4, "hidden": 16}), "gpt2") is None


def test_widths_go_through_a_config_and_back() -> None:
    config = LlmConfig(family="qwen3", layers=2, hidden=32, heads=8, kv_heads=4)
    widths = widths_of(config)
    assert widths == Widths(32, 8, 4, 4, 96)
    narrow = with_widths(config, aimed_at(widths, {"heads": 4, "ffn": 40, "hidden": 24}))
    assert widths_of(LlmConfig.model_validate(narrow.model_dump())) == Widths(24, 4, 4, 4, 40)
    assert (narrow.head_dim, narrow.kv_heads) == (4, None)
    assert widths_of(LlmConfig(backbone="x")) is None


def test_every_family_knows_what_leads_out() -> None:
    for layout in LAYOUTS.values():
        assert layout.matrices[layout.reading("ffn")] == ("hidden", "ffn")
        assert layout.matrices[layout.reading("heads")] == ("hidden", "heads")
