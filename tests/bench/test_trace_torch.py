"""Calls of checkpoints that are taken apart."""

import numpy as np
import pytest
import torch

from bench.stopwatch import Stopwatch
from bench.trace_torch import TorchTrace, hooked
from recommender import ranking
from recommender.models.last_position import LastPosition
from recommender.ranking import TorchScorer
from recommender.scoring import HistoryArrays
from tests.export.fixtures import MODELS, N_ITEMS, left_padded, tiny_model

BODILESS = ("popularity", "item-vectors")


def batch() -> HistoryArrays:
    items = left_padded(5, 9)
    return HistoryArrays(items, seen=items)


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_a_call_has_its_time(name: str) -> None:
    spent = TorchTrace(TorchScorer(tiny_model(name))).call(batch(), 3)
    body = {"blocks", "head"} if name not in BODILESS else set()
    assert set(spent) == {"embedding", "scoring", "top_k", "other"} | body
    assert all(value > 0 for value in spent.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "sasrec"])
def test_answers_are_the_same_and_nothing_stays_behind(name: str) -> None:
    scorer = TorchScorer(tiny_model(name))
    plain = scorer.top_k(batch(), 3)
    seams = (LastPosition.forward, ranking.top_rows)
    with hooked(scorer, Stopwatch()):
        traced = scorer.top_k(batch(), 3)
    np.testing.assert_array_equal(plain.items, traced.items)
    assert (LastPosition.forward, ranking.top_rows) == seams
    assert "user_vector" not in vars(scorer.model) and "_scores" not in vars(scorer)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in scorer.model.modules())


@pytest.mark.parametrize("name", ["llama", "sasrec", "sasrec-zeroed"])
def test_the_blocks_begin_with_the_first_and_end_with_the_last(name: str) -> None:
    """The clock shows the part as modules run: linear maps of blocks lie in blocks, the others do not."""
    model = tiny_model({"sasrec-zeroed": "sasrec-query"}.get(name, name))
    scorer, watch = TorchScorer(model), Stopwatch()
    inside = {module for block in model.bodies()["user"].blocks for module in block.modules()}
    seen: list[tuple[bool, str]] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.register_forward_hook(lambda m, *_: seen.append((m in inside, watch.part)))
    with hooked(scorer, watch):
        scorer.top_k(batch(), 3)
    assert {part for within, part in seen if within} == {"blocks"}
    assert {part for within, part in seen if not within} <= {"embedding", "head"}
    assert seen[0] == (False, "embedding")
    assert any(within for within, _ in seen)


def test_a_model_of_one_block_has_blocks_too() -> None:
    model = tiny_model("llama")
    model.bodies()["user"].keep([0])
    assert TorchTrace(TorchScorer(model)).call(batch(), 3)["blocks"] > 0


def test_several_micro_batches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, calls = TorchScorer(tiny_model("sasrec")), []
    monkeypatch.setattr(ranking, "TOKENS_PER_CALL", 9)
    monkeypatch.setattr(ranking, "USERS_PER_PRODUCT", 2)
    trace = TorchTrace(scorer)
    turn = trace.watch.turn
    monkeypatch.setattr(trace.watch, "turn", lambda part: (calls.append(part), turn(part)))
    trace.call(HistoryArrays(np.ones((5, 9), np.int64) * N_ITEMS), 3)
    assert calls.count("embedding") == 5 and calls.count("head") >= 5
    assert calls.count("top_k") == 3 and calls.count("scoring") == 4  # 2 + 2 + 1 users, and the end of them
