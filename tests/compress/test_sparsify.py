"""The stage sparsify: the right zeros, block after block, honest shares, clear refusals."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import calibration
from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune_depth
from compress.sparsity import magnitude, wanda
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.models.config import LlmConfig, SasrecConfig
from recommender.models.interface import SequentialRecommender
from recommender.models.linears import Linear, body_linears, watched
from recommender.models.zeros import is_2_to_4
from recommender.sparsity import noted
from recommender.stage import Bound
from recommender.training.validation import validation_quality

from .conftest import MakeContext
from .sparse import METHODS, matrices, sparsify, untrained


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_every_matrix_loses_half_and_the_checkpoint_says_so(
    source: str, method: str, pattern: str, request: pytest.FixtureRequest, make_context: MakeContext
) -> None:
    trained: Bound = request.getfixturevalue(source)
    sparse, metrics = sparsify(trained, make_context, method=method, pattern=pattern)
    found = matrices(sparse)
    info = read_info(sparse.path)
    note = noted(info.about, "")
    assert note is not None and (note.method, note.pattern, note.sparsity) == (method, pattern, 0.5)
    for name, matrix in found.items():
        assert int((matrix == 0).sum()) == matrix.numel() // 2
        assert note.matrices[name] == metrics["matrices"][name]["share_of_zeros"] == 0.5
        assert 0 < metrics["matrices"][name]["relative_error"] < 1
        assert is_2_to_4(matrix) or pattern != "2:4"
    zeros = sum(int((matrix == 0).sum()) for matrix in found.values())
    weights = sum(matrix.numel() for matrix in found.values())
    assert (metrics["zeros"], metrics["share_of_body_matrices"]) == (zeros, zeros / weights)
    assert metrics["share_of_body_parameters"] == zeros / info.body_parameters
    assert metrics["share_of_everything"] == zeros / info.parameters
    assert 0.5 > metrics["share_of_body_parameters"] > metrics["share_of_everything"] > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_all_else_is_bit_for_bit_what_it_was(method: str, teacher: Bound, make_context: MakeContext) -> None:
    sparse, _ = sparsify(teacher, make_context, method=method)
    before, after = (load_checkpoint(each.path) for each in (teacher, sparse))
    touched = {id(each.module.weight) for each in body_linears(after.bodies()["user"]).values()}
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    for old, new in pairs:
        if id(new) not in touched:
            assert torch.equal(old, new)
        elif method != "sparsegpt":
            assert torch.equal(new[new != 0], old[new != 0])


def test_quality_is_measured_on_what_is_saved(teacher: Bound, make_context: MakeContext) -> None:
    sparse, metrics = sparsify(teacher, make_context)
    quality = validation_quality(load_checkpoint(sparse.path), make_context("again"))
    assert metrics["ndcg@10"] == pytest.approx(quality["ndcg@10"])
    assert read_info(sparse.path).about["best_ndcg"] == metrics["ndcg@10"]


def test_sparsegpt_loses_least_on_the_histories(teacher: Bound, make_context: MakeContext) -> None:
    mean = {}
    for method in METHODS:
        found = sparsify(teacher, make_context, method, method=method)[1]["matrices"].values()
        mean[method] = sum(each["relative_error"] for each in found) / len(found)
    assert mean["sparsegpt"] < mean["wanda"] < mean["magnitude"]


def note_down(seen: dict[str, list[torch.Tensor]], linear: Linear, inputs: torch.Tensor) -> None:
    seen[linear.name].append(inputs[0])


class OneBlockAfterTheOther:
    """Wanda by hand: hooks on the whole model, histories one by one, without padding."""

    def __init__(self, model: SequentialRecommender, drawn: calibration.Calibration) -> None:
        self.model, self.drawn = model, drawn
        self.linears = body_linears(model.bodies()["user"])

    def prune(self) -> dict[str, float]:
        errors = {}
        for block in range(len(self.model.bodies()["user"].blocks)):
            here = {name: each for name, each in self.linears.items() if each.block == block}
            seen: dict[str, list[torch.Tensor]] = {name: [] for name in here}
            with watched(here, partial(note_down, seen)), torch.no_grad():
                for row in self.drawn.items:
                    items = torch.from_numpy(row[row != 0])[None]
                    self.model.hidden(calibration.History(items))
            for name, each in here.items():
                x = torch.cat(seen[name])
                pruned = wanda(each.matrix(), x.norm(dim=0), 0.5).weight
                lost, whole = x @ (each.matrix() - pruned).T, x @ each.matrix().T
                errors[name] = float(lost.norm() / whole.norm())
                each.matrix().copy_(pruned)
        return errors


@pytest.mark.parametrize("source", ["teacher", "sasrec"])
def test_inputs_of_a_block_come_from_the_pruned_blocks_before_it_and_padding_counts_for_nothing(
    source: str, request: pytest.FixtureRequest, prepared: Prepared, make_context: MakeContext
) -> None:
    trained: Bound = request.getfixturevalue(source)
    sparse, metrics = sparsify(trained, make_context, method="wanda", calibration_users=40)
    context = make_context("by hand")
    drawn = calibration.sample(prepared, context.split, users=40, max_length=10, seed=context.seed)
    assert len({int((row != 0).sum()) for row in drawn.items}) > 3  # so there was padding in the batches
    by_hand = OneBlockAfterTheOther(load_checkpoint(trained.path), drawn)
    errors = by_hand.prune()
    for name, matrix in matrices(sparse).items():
        assert torch.equal(by_hand.linears[name].matrix(), matrix), name
        assert metrics["matrices"][name]["relative_error"] == pytest.approx(errors[name], rel=1e-3)
    assert metrics["calibration"] == {"users": 40, "positions": int((drawn.items != 0).sum())}


@pytest.mark.parametrize("method", METHODS)
def test_what_goes_does_not_depend_on_the_size_of_a_call(
    method: str, teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = sparsify(teacher, make_context, "whole", method=method)
    monkeypatch.setattr(calibration, "TOKENS_PER_CALL", 15)
    pieces, _ = sparsify(teacher, make_context, "pieces", method=method)
    for name, matrix in matrices(whole).items():
        other = matrices(pieces)[name]
        assert float(((matrix == 0) != (other == 0)).float().mean()) < 0.01  # rounding may turn a close call
        torch.testing.assert_close(other, matrix, atol=0.05, rtol=0.0)


FAMILIES = {
    "gpt2": LlmConfig(family="gpt2", layers=2, hidden=16, heads=2, item_dim=8),
    "opt": LlmConfig(family="opt", layers=2, hidden=16, heads=2, item_dim=8),
    "gpt_neox": LlmConfig(family="gpt_neox", layers=2, hidden=16, heads=2, item_dim=8),
    "phi3": LlmConfig(family="phi3", layers=2, hidden=16, heads=2, item_dim=8),
    "gemma3": LlmConfig(family="gemma3_text", layers=2, hidden=16, heads=2, item_dim=8),
    "zeroed": SasrecConfig(layers=2, hidden=16, norm="query", padding="zeroed"),
    "attended": SasrecConfig(layers=2, hidden=16, norm="post", padding="attended"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_along_its_inputs(
    family: str, tmp_path: Path, prepared: Prepared, make_context: MakeContext
) -> None:
    source = untrained(tmp_path / family, prepared, FAMILIES[family])
    sparse, _ = sparsify(source, make_context, method="sparsegpt", pattern="2:4")
    assert all(is_2_to_4(matrix) for matrix in matrices(sparse).values())
    by_size, _ = sparsify(source, make_context, "by size", method="magnitude", pattern="2:4")
    before = matrices(source)
    for name, matrix in matrices(by_size).items():
        assert torch.equal(matrix, magnitude(before[name], 0.5, pattern="2:4").weight)


def test_only_what_is_named_is_pruned_and_shares_are_of_all(
    teacher: Bound, make_context: MakeContext
) -> None:
    sparse, metrics = sparsify(teacher, make_context, matrices=["up_proj", "down_proj"], blocks=[1, 3])
    wanted = {f"{block}.mlp.{kind}" for block in (1, 3) for kind in ("up_proj", "down_proj")}
    before = matrices(teacher)
    for name, matrix in matrices(sparse).items():
        assert (float((matrix == 0).float().mean()) == 0.5) is (name in wanted)
        assert torch.equal(matrix, before[name]) is (name not in wanted)
    assert set(metrics["matrices"]) == wanted == set(read_info(sparse.path).about["sparsity"]["matrices"])
    zeros = 2 * 2 * 16 * 48 // 2
    assert metrics["share_of_body_matrices"] == zeros / sum(m.numel() for m in before.values())
    more, _ = sparsify(sparse, make_context, "more", matrices=["q_proj"])
    note = noted(read_info(more.path).about, "")
    assert note is not None and set(note.matrices) == wanted | {f"{n}.self_attn.q_proj" for n in range(4)}


def test_sparser_in_steps_keeps_the_zeros_of_before(teacher: Bound, make_context: MakeContext) -> None:
    once, _ = sparsify(teacher, make_context, "once")
    twice, _ = sparsify(once, make_context, "twice", sparsity=0.75)
    structured, _ = sparsify(once, make_context, "structured", pattern="2:4")
    for name, matrix in matrices(once).items():
        zero = matrix == 0
        more, two_to_four = matrices(twice)[name], matrices(structured)[name]
        assert not more[zero].any() and int((more == 0).sum()) == matrix.numel() * 3 // 4
        assert not two_to_four[zero].any() and is_2_to_4(two_to_four)
    assert read_info(twice.path).about["sparsity"]["sparsity"] == 0.75


class TestAfterwards:
    def test_blocks_that_stay_keep_their_zeros_and_the_note_their_new_numbers(
        self, teacher: Bound, make_context: MakeContext
    ) -> None:
        sparse, _ = sparsify(teacher, make_context, blocks=[0, 3], method="wanda")
        note = noted(self.cut(sparse, make_context, keep=(2, 3)), "")
        assert note is not None
        assert {name.partition(".")[0] for name in note.matrices} == {"1"}
        assert note.share == pytest.approx(1 / 4)
        assert set(note.matrices.values()) == {0.5}

    @pytest.mark.parametrize("values", [{"init": "fresh"}, {"init": "base"}, {"keep": (1, 2)}], ids=str)
    def test_other_weights_are_not_sparse_and_nobody_says_so(
        self, values: dict[str, Any], teacher: Bound, make_context: MakeContext
    ) -> None:
        sparse, _ = sparsify(teacher, make_context, blocks=[0, 3], method="wanda")
        said: list[str] = []
        about = self.cut(sparse, make_context, said=said, **{"keep": 2, **values})
        assert noted(about, "") is None
        assert any("source is sparse" in text for text in said)

    def cut(
        self, sparse: Bound, make_context: MakeContext, said: list[str] | None = None, **values: Any
    ) -> Mapping[str, Any]:
        heard: list[str] = [] if said is None else said
        context = make_context("cut", progress=lambda event, v: heard.append(str(v.get("text"))))
        config = PruneDepthConfig.model_validate({"of": "source", "as": "cut", **values})
        prune_depth(config, {"source": sparse}, context)
        return read_info(context.folder / "checkpoint").about
