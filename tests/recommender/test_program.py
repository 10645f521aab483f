"""Checkpoints in other ways than eager float32: the same lists, or nearly."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recommender import program as subject
from recommender.errors import InputError, StageError
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, ModelConfig, PopularityConfig, SasrecConfig
from recommender.models.interface import SequentialRecommender
from recommender.program import ProgramScorer
from recommender.ranking import TorchScorer, score_product, users_per_product
from recommender.scoring import HistoryArrays
from recommender.shapes import padded, power_of_two, seen_width
from recommender.torch_ways import in_bf16, scorer_in
from recommender.ways import WAYS, Way

N_ITEMS, LENGTH = 40, 12
MODELS: dict[str, ModelConfig] = {
    "llama": LlmConfig(family="llama", layers=2, hidden=16, heads=2, item_dim=8),
    "gpt2": LlmConfig(family="gpt2", layers=1, hidden=16, heads=2, item_dim=8),
    "sasrec": SasrecConfig(hidden=16, layers=1),
    "popularity": PopularityConfig(),
}
HERE: list[Way] = [way for way, each in WAYS.items() if not each.needs_cuda]


def tiny(name: str) -> SequentialRecommender:
    counts = torch.arange(N_ITEMS + 1).flip(0) // 3  # ties of three rows each
    return build_model(MODELS[name], n_items=N_ITEMS, max_length=LENGTH, seed=3, counts=counts).eval()


def histories(users: int = 5, *, width: int = LENGTH, seen: bool = True) -> HistoryArrays:
    rng = np.random.default_rng(1)
    items = rng.integers(1, N_ITEMS + 1, (users, width))
    items[np.arange(width)[None] < np.arange(users)[:, None] % width] = 0
    return HistoryArrays(items, items if seen else None)


def as_it_is(program: nn.Module, **_: Any) -> nn.Module:
    """Stands in for torch.compile, which takes long."""
    return program


@pytest.mark.parametrize("name", list(MODELS))
def test_one_program_per_call_gives_the_lists_of_the_eager_scorer(name: str) -> None:
    model = tiny(name)
    for asked, k in ((histories(), 3), (histories(1, width=4, seen=False), 7)):
        want = TorchScorer(model).top_k(asked, k)
        found = ProgramScorer(model, compiler=as_it_is).top_k(asked, k)
        assert np.array_equal(found.items, want.items)
        np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)


def test_ties_at_the_end_of_a_list_go_to_the_lower_row_in_one_program_too() -> None:
    scorer = ProgramScorer(tiny("popularity"), compiler=as_it_is)
    for k in (1, 2, 4, 5):
        assert scorer.top_k(histories(2, seen=False), k).items.tolist() == [list(range(1, k + 1))] * 2


def test_a_list_longer_than_what_is_left_ends_with_row_0() -> None:
    everything = np.tile(np.arange(1, N_ITEMS - 1), (2, 1))
    found = ProgramScorer(tiny("llama"), compiler=as_it_is).top_k(HistoryArrays(everything, everything), 4)
    assert found.items[:, 2:].tolist() == [[0, 0]] * 2 and np.isneginf(found.scores[:, 2:]).all()


def test_a_shape_is_compiled_once_and_other_users_of_it_take_the_same() -> None:
    made: list[str] = []

    def compiler(program: nn.Module, *, mode: str, dynamic: bool, fullgraph: bool) -> nn.Module:
        assert fullgraph and not dynamic  # nothing falls back to eager unseen
        made.append(mode)
        return program

    scorer = ProgramScorer(tiny("sasrec"), graphs=True, compiler=compiler)
    for users in (5, 6, 8, 3):
        assert scorer.top_k(histories(users), 3).items.shape == (users, 3)
    assert made == ["reduce-overhead"] * 2  # 8 users, 4 users
    assert scorer.top_k(HistoryArrays(np.zeros((0, 3), dtype=np.int64)), 3).items.shape == (0, 3)


def test_a_program_that_torch_left_without_cuda_graphs_is_not_passed_off_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = ProgramScorer(tiny("sasrec"), graphs=True, compiler=as_it_is)
    scorer.top_k(histories(), 3)
    monkeypatch.setattr(subject, "graphs_skipped", lambda: 1)
    with pytest.raises(StageError, match="without CUDA graphs"):
        scorer.top_k(histories(), 3)
    ProgramScorer(tiny("sasrec"), compiler=as_it_is).top_k(histories(), 3)


def test_shapes_are_few() -> None:
    assert [power_of_two(n) for n in (1, 2, 3, 256, 257)] == [1, 2, 4, 256, 512]
    assert seen_width(HistoryArrays(np.ones((1, 1), dtype=np.int64))) == 64
    wide = np.ones((3, 65), dtype=np.int64)
    items, seen = padded(HistoryArrays(wide, wide), 50)
    assert items.shape == (4, 50) and seen.shape == (4, 256)
    assert not items[3].any() and not seen[:, 65:].any() and items[:3].all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "sasrec"])
def test_bf16_rounds_the_body_and_keeps_the_scores_in_float32(name: str) -> None:
    want = TorchScorer(tiny(name)).top_k(histories(), 5)
    scorer = scorer_in("bf16", tiny(name))
    found = scorer.top_k(histories(), 5)
    assert next(iter(scorer.model.bodies()["user"].parameters())).dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert not np.array_equal(found.scores, want.scores)
    np.testing.assert_allclose(found.scores, want.scores, rtol=0.1, atol=0.02 * np.abs(want.scores).max())


def test_bf16_leaves_the_angles_of_rotary_positions_alone() -> None:
    model = tiny("llama")
    in_bf16(model)
    angles = [buffer for name, buffer in model.named_buffers() if "inv_freq" in name]
    assert angles and all(each.dtype == torch.float32 for each in angles)


def test_a_table_in_half_precision_gives_float32_scores() -> None:
    users, table = torch.ones(2, 4), torch.ones(3, 4, dtype=torch.bfloat16)
    assert score_product(users, table).dtype == torch.float32
    assert users_per_product(torch.device("cpu"), 10) == 256
    assert users_per_product(torch.device("cuda"), 1 << 20) == 256
    assert users_per_product(torch.device("cuda"), 1 << 14) == 1 << 14


@pytest.mark.parametrize("way", [way for way in WAYS if way not in HERE])
def test_a_way_that_is_one_on_a_gpu_only_is_refused_elsewhere(way: Way) -> None:
    with pytest.raises(InputError, match="it needs CUDA") as error:
        scorer_in(way, tiny("sasrec"))
    assert error.value.fix is not None and "compile-bf16" in error.value.fix


def test_an_unknown_way_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'compile-bf16'"):
        scorer_in("compile-bf6", tiny("sasrec"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compile", "compile-bf16"])
def test_compiled_checkpoints_rank_like_their_precision(way: Way) -> None:
    precision: Way = "bf16" if way.endswith("bf16") else "eager"
    want = scorer_in(precision, tiny("llama")).top_k(histories(), 5)
    found = scorer_in(way, tiny("llama")).top_k(histories(), 5)
    tolerance = 0.02 if way.endswith("bf16") else 1e-4
    np.testing.assert_allclose(found.scores, want.scores, atol=tolerance * np.abs(want.scores).max())
    if way == "compile":
        assert np.array_equal(found.items, want.items)


@pytest.mark.gpu
@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_ranks_alike_on_a_gpu(way: Way) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    before = torch.get_float32_matmul_precision()
    want = TorchScorer(tiny("llama").to("cuda")).top_k(histories(), 5)
    scorer = scorer_in(way, tiny("llama").to("cuda"))
    try:
        for _ in range(3):  # a CUDA graph is recorded in the second call and replayed in the third
            found = scorer.top_k(histories(), 5)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(found.scores, want.scores, atol=0.03 * np.abs(want.scores).max())
