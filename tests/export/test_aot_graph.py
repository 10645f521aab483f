"""What is compiled: equal scores by row, matrices in bfloat16 that rank nearly alike."""

import numpy as np
import pytest
import torch

from export.aot_graph import AnglesOnce, CompiledGraph, HalfProducts, ordered_top_k, with_half_matrices
from export.graph import ScoringGraph
from recommender.models.interface import History
from tests.export.fixtures import MAX_LENGTH, MODELS, TOP_K, left_padded, tiny_model


def by_row(scores: torch.Tensor, k: int) -> torch.Tensor:
    return torch.sort(-scores, dim=1, stable=True).indices[:, :k]


@pytest.mark.parametrize(
    ("count", "k"), [(1, 1), (40, 15), (3000, 5), (4 * 7 * 32, 7), (4001, 7), (12_102, 20)]
)
def test_equal_scores_stand_by_ascending_row(count: int, k: int) -> None:
    torch.manual_seed(count)
    scores = torch.randint(-3, 4, (9, count)) / 7  # many ties, negative ones and zeros as well
    scores[1] = 0.0
    scores[2, ::2], scores[2, 1::2] = -0.0, 0.0
    scores[3] = float("-inf")
    scores[4, 1:] = float("-inf")
    rows, best = ordered_top_k(scores, k)
    assert torch.equal(rows, by_row(scores, k))
    assert torch.equal(best, scores.gather(1, rows))


def test_scores_keep_the_order_of_float32_to_the_last_bit() -> None:
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (5, 2000)).to(torch.int32)
    scores = bits.view(torch.float32).nan_to_num(nan=1.0, posinf=2.0)
    near = torch.nextafter(scores[:, :1], torch.tensor(float("inf")))
    scores = torch.cat((scores, near), dim=1)
    assert torch.equal(ordered_top_k(scores, 50)[0], by_row(scores, 50))


def test_nan_is_not_lost() -> None:
    scores = torch.zeros(1, 5000)
    scores[0, 4321] = float("nan")
    rows, best = ordered_top_k(scores, 3)
    assert rows[0, 0] == 4321 and best[0, 0].isnan()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_ranks_as_by_the_canonical_graph_and_nearly_so_in_bfloat16(name: str) -> None:
    model = tiny_model(name)
    items, seen = torch.from_numpy(left_padded(6, MAX_LENGTH)), torch.tensor([[3, 0]] * 6)
    with torch.no_grad():
        canonical = ScoringGraph(model, TOP_K)(items, seen)
        rows, scores = CompiledGraph(model, TOP_K)(items, seen)
        half_rows, half_scores = CompiledGraph(model, TOP_K, half=True).eval()(items, seen)
        exact = ScoringGraph(model, TOP_K).scores(model.user_vector(History(items)), seen)
    assert torch.equal(scores, canonical[1]) and torch.equal(rows, by_row(exact, TOP_K))
    assert half_scores.dtype == torch.float32 and not (half_rows == 3).any()
    largest = exact.nan_to_num(neginf=0).abs().max()
    assert (exact.gather(1, half_rows) - half_scores).abs().max() < 0.03 * largest


def test_a_padded_history_scores_like_a_bare_one_in_bfloat16() -> None:
    graph = CompiledGraph(tiny_model("sasrec"), TOP_K, half=True).eval()
    bare, seen = torch.tensor([[5, 7, 9]]), torch.zeros(1, 1, dtype=torch.long)
    padded = torch.nn.functional.pad(bare, (MAX_LENGTH - 3, 0))
    with torch.no_grad():
        (rows, scores), (same, close) = graph(bare, seen), graph(padded, seen)
    assert torch.equal(rows, same) and torch.allclose(scores, close, rtol=0.02)


def test_the_model_that_was_given_stays_as_it_is() -> None:
    model = tiny_model("gpt2")
    with_half_matrices(model)
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_matrices_are_stored_once_in_bfloat16_and_tables_in_float32() -> None:
    half = with_half_matrices(tiny_model("llama"))
    found = {name: each.dtype for name, each in half.named_parameters()}
    assert found["body.backbone.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert found["items.weight"] == found["body.backbone.norm.weight"] == torch.float32


def test_only_products_round_and_norms_do_not() -> None:
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    with HalfProducts():
        assert torch.nn.functional.linear(x, w).dtype == torch.bfloat16
        assert (x @ w).dtype == torch.matmul(x, w).dtype == torch.bfloat16
        outer = x[:, :1] @ w[:1]  # as angles of rotary embeddings are made
        assert outer.dtype == torch.float32 and torch.equal(outer, torch.mul(x[:, :1], w[:1]))
        assert torch.nn.functional.layer_norm(x.bfloat16(), (8,)).dtype == torch.float32
        assert torch.softmax(x.bfloat16(), dim=1).dtype == torch.float32


def test_attention_may_stay_in_float32() -> None:
    q, mask = torch.randn(1, 1, 3, 8), torch.zeros(3, 3)
    plain = torch.nn.functional.scaled_dot_product_attention(q, q, q, mask)
    with HalfProducts(attention=False):
        mixed = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert torch.equal(mixed, plain)


def test_angles_are_written_to_memory_unchanged() -> None:
    angles = torch.randn(2, 5, 16) * 30
    with AnglesOnce(), HalfProducts():
        assert torch.equal(angles.cos(), torch.cos(angles)) and torch.equal(torch.sin(angles), angles.sin())
        found = angles.cos()
    assert torch.equal(found, angles.cos())
    program = torch.export.export(Cosine(), (angles,))
    assert "matmul" in program.graph_module.code  # which a compiler does not fuse


class Cosine(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with AnglesOnce():
            return x.cos()


def test_a_mask_at_the_end_of_float32_leaves_no_query_without_a_key() -> None:
    q = torch.randn(1, 1, 3, 8)
    mask = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min)
    unmasked = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    with HalfProducts():
        for mixed in (
            torch.nn.functional.scaled_dot_product_attention(q, q, q, mask, 0.0),
            torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask),
        ):
            np.testing.assert_allclose(mixed.float(), unmasked, atol=0.05)
