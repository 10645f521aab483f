"""Cost formulas against what torch counts and what models store."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2MoeConfig, Qwen2MoeModel

from recommender.checkpoint import body_parameters
from recommender.cost import CostFormulas, Work, counts, work_of
from recommender.models.build import build_model
from recommender.models.config import (
    FAMILIES,
    ItemVectorsConfig,
    LlmConfig,
    ModelConfig,
    PopularityConfig,
    SasrecConfig,
)
from recommender.models.cost import WIDTHS, cost_card
from recommender.models.hf_body import HuggingFaceBody
from recommender.models.interface import Hidden, History, SequentialRecommender
from recommender.models.llm import LlmRecommender

N_ITEMS, MAX_LENGTH, LENGTH, USERS = 40, 12, 7, 3
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")


def llm(family: str, **more: Any) -> LlmConfig:
    given = {"family": family, "layers": 3, "hidden": 32, "heads": 4, "ffn": 40, "item_dim": 8}
    return LlmConfig.model_validate({**given, **more})


CONFIGS: dict[str, ModelConfig] = {
    **{family: llm(family) for family in FAMILIES},
    **{f"{family}-grouped": llm(family, kv_heads=2) for family in GROUPED if family != "phi3"},
    **{f"{family}-narrow": llm(family, hidden=24, heads=2, head_dim=16) for family in GROUPED},
    "one-block": llm("llama", layers=1),
    "fixed-slots": llm("gpt2", fixed_slots=True),
    "sasrec": SasrecConfig(hidden=16, heads=2, layers=3),
    "sasrec-query": SasrecConfig(hidden=16, heads=2, layers=2, norm="query", padding="zeroed"),
    "sasrec-pre": SasrecConfig(hidden=16, heads=2, layers=2, norm="pre", padding="attended"),
    "sasrec-post": SasrecConfig(hidden=16, heads=1, layers=2, norm="post", padding="attended"),
    "item-vectors": ItemVectorsConfig(),
    "last-item": ItemVectorsConfig(pool="last"),
    "popularity": PopularityConfig(),
}


def model_of(name: str) -> SequentialRecommender:
    vectors = torch.randn(N_ITEMS + 1, 8) if isinstance(CONFIGS[name], ItemVectorsConfig) else None
    model = build_model(
        CONFIGS[name], n_items=N_ITEMS, max_length=MAX_LENGTH, seed=3, item_vectors=vectors,
        counts=torch.ones(N_ITEMS + 1),
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def with_prompts(name: str) -> LlmRecommender:
    """The same model with 2 tokens before and 1 after the items."""
    model = model_of(name)
    assert isinstance(model, LlmRecommender)
    model.prefix, model.suffix = torch.randn(2, 32), torch.randn(1, 32)
    return model


def full_histories() -> Tensor:
    return torch.randint(1, N_ITEMS + 1, (USERS, LENGTH), generator=torch.Generator().manual_seed(0))


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """torch counts matrix products; its attention for CPUs is not among them, that in plain maths is."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def formulas_of(model: SequentialRecommender, **more: Any) -> CostFormulas:
    card = cost_card(model, **more)
    return CostFormulas.model_validate(json.loads(json.dumps(card)))


def check_products(model: SequentialRecommender) -> None:
    with counted() as user:
        vectors = model.user_vector(History(full_histories()))
    with counted() as scoring:
        _ = vectors @ model.item_table().T
    work = work_of(formulas_of(model), [LENGTH] * USERS, k=5)
    assert sum(work[name].products for name in ("embedding", "blocks", "head")) == user.get_total_flops()
    assert work["scoring"].products == scoring.get_total_flops() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_products_are_those_that_torch_counts(name: str) -> None:
    check_products(model_of(name))


@pytest.mark.parametrize("name", ["llama", "opt", "phi3"])
def test_prompts_cost_positions_but_no_projection(name: str) -> None:
    model = with_prompts(name)
    check_products(model)
    assert formulas_of(model).extra_positions == 3


def test_a_pruned_body_costs_what_is_left_of_it() -> None:
    model = model_of("qwen3")
    whole = work_of(formulas_of(model), [LENGTH], k=5)["blocks"]
    model.bodies()["user"].keep([0, 2])
    check_products(model)
    assert work_of(formulas_of(model), [LENGTH], k=5)["blocks"].products < whole.products


def test_a_block_that_cannot_be_cut_to_its_last_position_counts_whole() -> None:
    """OPT with norms behind: `LastPosition` does not know it, so torch computes every position."""
    from transformers import OPTConfig, OPTModel

    config = OPTConfig(
        vocab_size=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
        max_position_embeddings=MAX_LENGTH, word_embed_proj_dim=32, do_layer_norm_before=False,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    body = HuggingFaceBody(OPTModel(config))
    vectors = torch.randn(N_ITEMS + 1, 8)
    model = LlmRecommender(body, item_vectors=vectors, train_items=False, max_length=MAX_LENGTH, dropout=0.0)
    check_products(model.eval().requires_grad_(False))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_call_reads_every_weight_once(name: str) -> None:
    model = model_of(name)
    parts = formulas_of(model).parts
    read = sum(parts[part].bytes.get("call", 0) for part in ("embedding", "blocks", "head"))
    body = body_parameters(model) if name not in ("item-vectors", "last-item", "popularity") else 0
    assert read == 4 * body
    table = model.item_table()
    assert parts["scoring"].bytes["row"] * formulas_of(model).rows == table.numel() * 4
    assert set(parts["embedding"].bytes) >= (
        {"item"} if "popularity" not in name and name != "last-item" else set()
    )


def test_bytes_and_norms_by_hand() -> None:
    """SASRec, width 16, histories of 2 and 5 items: a row of 64 bytes and an id of 8 per item."""
    work = work_of(formulas_of(model_of("sasrec")), [2, 5], k=10)
    assert work["embedding"] == Work(bytes=7 * (64 + 8) + 5 * 64)
    assert work["head"] == Work(elementwise=2 * 7 * 16, bytes=2 * 16 * 4)
    assert work["scoring"] == Work(products=2 * 41 * 2 * 16, bytes=41 * 64)
    assert work["top_k"] == Work(elementwise=2 * 41, bytes=2 * 10 * 12)
    # two blocks norm every position twice, the last one every position once and each user once
    assert work["blocks"].elementwise == 7 * 16 * (2 * 2 * 7 + 7 + 2)
    # q x k and weights x v: 4 * 16 FLOPs per pair in two blocks, per position in the last
    assert work["blocks"].attention == 64 * (2 * (4 + 25) + 7)
    assert work["embedding"].flops == 0


def test_lengths_are_cut_to_what_the_model_reads_and_an_empty_history_costs_one_item() -> None:
    formulas = formulas_of(model_of("sasrec-pre"))
    found = counts(formulas, [0, 99], k=3)
    assert (found["item"], found["position"], found["longest"]) == (13, 15, 13)
    assert (found["pair"], found["answer"], found["user_row"]) == (2**2 + 13**2, 6, 2 * 41)
    assert counts(formulas, [], k=3)["longest"] == 0


def test_a_grown_catalogue_is_scored_whole() -> None:
    formulas = formulas_of(model_of("llama"))
    before, after = (work_of(formulas, [3], k=1, rows=rows) for rows in (None, 82))
    assert after["scoring"].products == 2 * before["scoring"].products
    assert after["blocks"] == before["blocks"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "sasrec"])
@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
def test_a_variant_with_smaller_weights_reads_less(name: str, precision: str) -> None:
    model = model_of(name)
    plain, light = formulas_of(model), formulas_of(model, precision=precision, table_precision=precision)
    maps = sum(
        module.weight.numel()
        for module in model.bodies()["user"].blocks.modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    )
    saved = plain.parts["blocks"].bytes["call"] - light.parts["blocks"].bytes["call"]
    assert saved == maps * (4 - WIDTHS[precision])
    assert light.parts["scoring"].bytes["row"] * 4 == plain.parts["scoring"].bytes["row"] * WIDTHS[precision]
    assert light.parts["blocks"].products == plain.parts["blocks"].products
    assert (light.precision, light.table_precision) == (precision, precision)


@pytest.mark.parametrize("name", ["llama", "gpt2", "sasrec"])
@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
def test_the_maps_around_the_blocks_are_as_light_as_those_within(name: str, precision: str) -> None:
    """An int8 body has its projections in int8, too: a bound with 4 bytes for them were none."""
    model = model_of(name)
    plain, light = formulas_of(model), formulas_of(model, precision=precision)
    maps = {"embedding": 8 * 32, "head": 32 * 8} if name != "sasrec" else {"embedding": 0, "head": 0}
    for part, weights in maps.items():
        before, after = (each.parts[part].bytes.get("call", 0) for each in (plain, light))  # type: ignore[index]
        assert before - after == weights * (4 - WIDTHS[precision])
        assert plain.parts[part].products == light.parts[part].products  # type: ignore[index]


def test_a_model_in_half_precision_says_so() -> None:
    half = formulas_of(model_of("llama").to(torch.bfloat16))
    whole = formulas_of(model_of("llama"))
    assert (half.precision, half.table_precision) == ("bf16", "bf16")
    assert 2 * half.parts["blocks"].bytes["call"] == whole.parts["blocks"].bytes["call"]


def test_the_shapes_of_the_linear_maps_stand_once_each() -> None:
    assert formulas_of(model_of("llama")).shapes == ((32, 32), (32, 40), (40, 32))
    assert formulas_of(model_of("gpt2")).shapes == ((32, 96), (32, 32), (32, 40), (40, 32))
    assert formulas_of(model_of("popularity")).shapes == ()


def test_an_unknown_family_has_no_formulas() -> None:
    """Experts are chosen by their input: what such a block costs is not in its shapes."""
    config = Qwen2MoeConfig(
        vocab_size=1, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip
    body = HuggingFaceBody(Qwen2MoeModel(config))
    vectors = torch.zeros(N_ITEMS + 1, 8)
    model = LlmRecommender(body, item_vectors=vectors, train_items=False, max_length=MAX_LENGTH, dropout=0.0)
    assert cost_card(model) is None


def test_a_model_that_says_nothing_has_no_formulas() -> None:
    class Silent(SequentialRecommender):
        def hidden(self, history: History, **_: Any) -> Hidden:
            raise AssertionError("not needed")

        def project(self, states: torch.Tensor) -> torch.Tensor:
            raise AssertionError("not needed")

        def item_table(self) -> torch.Tensor:
            raise AssertionError("not needed")

    assert cost_card(Silent()) is None


def test_reading_formulas_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = "import sys, recommender.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
