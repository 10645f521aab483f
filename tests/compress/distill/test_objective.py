"""The distillation objective on models whose answer can be worked out."""

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.distill.matching import BlockMatching
from compress.distill.objective import Distillation, Side
from recommender.errors import StageError
from recommender.losses import full_softmax
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, SasrecConfig
from recommender.models.interface import History, SequentialRecommender
from recommender.models.llm import LlmRecommender
from recommender.training.batches import Batch

ALL = {"cos": 1.0, "norm": 0.1, "ms": 1.0}
TERMS = ("cos", "norm", "ms")


def llm(layers: int, seed: int, *, frozen: bool = False, suffix: int = 0, prefix: int = 0) -> LlmRecommender:
    config = LlmConfig(layers=layers, hidden=16, item_dim=8, dropout=0.0)
    built = build_model(config, n_items=30, max_length=6, seed=seed)
    assert isinstance(built, LlmRecommender)
    prompt = partial(torch.randn, generator=torch.Generator().manual_seed(3))
    model = LlmRecommender(
        built.body,
        item_vectors=built.items.weight.detach(),
        train_items=not frozen,
        max_length=6,
        dropout=0.0,
        prefix=prompt(prefix, 16) if prefix else None,
        suffix=prompt(suffix, 16) if suffix else None,
    )
    model.input_projection, model.output_projection = built.input_projection, built.output_projection
    return model


def batch(users: int = 5, length: int = 6, *, last: bool = False, seed: int = 0) -> Batch:
    """Histories of several lengths, left-padded; each position wants the next row."""
    rows = torch.randint(1, 31, (users, length + 1), generator=torch.Generator().manual_seed(seed))
    real = torch.arange(length) >= torch.arange(users).unsqueeze(1) % length
    targets = rows[:, 1:] * real
    if last:
        targets[:, :-1] = 0
    return Batch(rows[:, :-1] * real, targets)


def objective(
    student: SequentialRecommender,
    teacher: SequentialRecommender,
    weights: Mapping[str, float] = ALL,
    *,
    ce: float = 1.0,
    **values: Any,
) -> Distillation:
    options: dict[str, Any] = {"blocks": 2, "form": "paper", "norm": None} | values
    torch.manual_seed(0)
    terms = BlockMatching(
        student_layers=len(student.bodies()["user"].blocks),
        teacher_layers=len(teacher.bodies()["user"].blocks),
        hidden=16,
        item_dim=student.item_table().shape[1],
        weights=dict(weights),
        loss=full_softmax,
        **options,
    )
    return Distillation(
        student, loss=full_softmax, weights={"ce": ce, **weights}, terms=terms, teacher=teacher
    )


def numbers(terms: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def grads(module: nn.Module) -> list[float]:
    return [float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None]


def test_terms_are_those_of_the_papers_equations_at_the_aligned_blocks() -> None:
    student, teacher, given = llm(2, 1), llm(4, 2), batch()
    asked = objective(student, teacher)
    got = numbers(asked(given))
    with torch.no_grad():
        ours, theirs = student.hidden(History(given.items)), teacher.hidden(History(given.items))
    real = given.targets != 0
    pairs = [(ours.blocks[0][real], theirs.blocks[1][real]), (ours.final[real], theirs.final[real])]
    cosines = torch.stack([functional.cosine_similarity(s, t, dim=-1) for s, t in pairs])
    squares = torch.stack([(s - t).square().sum(-1) for s, t in pairs])
    assert isinstance(asked.terms, BlockMatching)
    with torch.no_grad():
        inner = asked.terms.heads[0](pairs[0][0]) @ student.item_table()[1:].T
    gold = given.targets[real] - 1
    final = student.project(ours.final[real]) @ student.item_table()[1:].T
    expected = {
        "cos": float((1 - cosines.mean(0)).sum()),
        "norm": float(squares.mean(0).sum()),
        "ms": float(functional.cross_entropy(inner, gold, reduction="sum")),
        "ce": float(functional.cross_entropy(final, gold, reduction="sum")),
    }
    loss = expected["ce"] + expected["cos"] + 0.1 * expected["norm"] + expected["ms"]
    assert got == pytest.approx(expected | {"loss": loss}, rel=1e-5)


def test_code_form_sums_over_blocks_and_takes_the_plain_norm() -> None:
    student, teacher, given = llm(4, 1), llm(4, 2), batch()
    paper = numbers(objective(student, teacher, blocks=4)(given))
    code = numbers(objective(student, teacher, blocks=4, form="code")(given))
    assert code["cos"] == pytest.approx(4 * paper["cos"], rel=1e-5)
    assert code["ms"] == pytest.approx(3 * paper["ms"], rel=1e-5)
    assert code["ce"] == pytest.approx(paper["ce"], rel=1e-6)
    squared = numbers(objective(student, teacher, blocks=4, form="code", norm="squared")(given))
    assert squared["norm"] == pytest.approx(4 * paper["norm"], rel=1e-5) != pytest.approx(code["norm"])


def test_inner_blocks_are_raw_and_the_last_one_is_normed_on_both_sides() -> None:
    model, given = llm(4, 1), batch()
    raw: list[Tensor] = []
    for block in model.body.blocks:
        block.register_forward_hook(lambda *call: raw.append(call[-1]))
    side = Side.of(model, given)
    real = given.targets != 0
    for layers in (1, 2, 3):
        assert torch.equal(side.after(layers), raw[layers - 1][real])
    assert torch.equal(side.after(4), model.body.backbone.norm(raw[3])[real])
    assert not torch.allclose(side.after(4), raw[3][real])


def test_student_equal_to_its_teacher_has_no_distance_to_it() -> None:
    student = llm(4, 1)
    got = numbers(objective(student, copy.deepcopy(student))(batch()))
    assert got["cos"] == pytest.approx(0.0, abs=1e-4) and got["norm"] == 0.0
    assert got["loss"] == pytest.approx(got["ce"] + got["ms"], abs=1e-4)


@pytest.mark.parametrize("active", TERMS)
def test_each_term_alone_moves_the_student_and_never_the_teacher(active: str) -> None:
    student, teacher = llm(2, 1, frozen=True), llm(4, 2)
    table = student.item_table().clone()
    weights = dict.fromkeys(TERMS, 0.0) | {active: 1.0}
    asked = objective(student, teacher, weights, ce=0.0)
    asked(batch())["loss"].backward()
    assert min(grads(student.body.blocks[0])) > 0 and min(grads(student.input_projection)) > 0
    assert isinstance(asked.terms, BlockMatching)
    assert len(asked.terms.heads) == (1 if active == "ms" else 0)
    assert active != "ms" or min(grads(asked.terms.heads[0])) > 0
    assert grads(teacher) == [] and student.item_table().grad is None
    torch.optim.SGD([p for p in asked.parameters() if p.requires_grad], lr=1.0).step()
    assert torch.equal(student.item_table(), table)


def test_logged_terms_carry_no_gradient() -> None:
    got = objective(llm(2, 1), llm(4, 2))(batch())
    assert {name for name, value in got.items() if value.requires_grad} == {"loss"}


def test_teacher_is_no_part_of_the_module_but_moves_with_it() -> None:
    student, teacher = llm(2, 1), llm(4, 2)
    asked = objective(student, teacher)
    own = {id(p) for p in student.parameters()} | {id(p) for p in asked.terms.parameters()}  # type: ignore[union-attr]
    assert {id(p) for p in asked.parameters()} == own
    assert not any("teacher" in name for name in asked.state_dict())
    asked.train()
    assert student.training and not teacher.training
    asked.double()
    assert teacher.item_table().dtype == torch.float64
    assert asked(batch())["loss"].dtype == torch.float64


def test_teacher_answers_as_before_after_training_steps() -> None:
    student, teacher, given = llm(2, 1), llm(4, 2), batch()
    before = teacher.user_vector(History(given.items)).detach()
    asked = objective(student, teacher)
    optimizer = torch.optim.AdamW(asked.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        asked.train()
        loss = asked(given)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(teacher.user_vector(History(given.items)), before)


def test_terms_are_sums_over_real_positions_however_a_batch_is_cut_or_padded() -> None:
    asked, given = objective(llm(2, 1), llm(4, 2)), batch()
    whole = numbers(asked(given))
    parts = [
        numbers(asked(Batch(given.items[cut], given.targets[cut]))) for cut in (slice(0, 2), slice(2, 5))
    ]
    assert {name: parts[0][name] + parts[1][name] for name in whole} == pytest.approx(whole, rel=1e-5)
    wide = Batch(functional.pad(given.items, (3, 0)), functional.pad(given.targets, (3, 0)))
    assert numbers(objective(llm(2, 1), llm(4, 2))(wide)) == pytest.approx(whole, rel=1e-4)


def test_half_precision_of_the_models_leaves_the_terms_in_single_precision() -> None:
    asked, given = objective(llm(2, 1), llm(4, 2)), batch()
    single = numbers(asked(given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = asked(given)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert numbers(half) == pytest.approx(single, rel=0.05) and numbers(half) != single


def test_last_position_alone_counts_for_every_term_alike() -> None:
    student, teacher, given = llm(2, 1), llm(4, 2), batch(last=True)
    got = numbers(objective(student, teacher)(given))
    ours, theirs = student.hidden(History(given.items)), teacher.hidden(History(given.items))
    pairs = [(ours.blocks[0][:, -1], theirs.blocks[1][:, -1]), (ours.final[:, -1], theirs.final[:, -1])]
    expected = sum((s - t).square().sum() / 2 for s, t in pairs)
    assert got["norm"] == pytest.approx(float(expected), rel=1e-5)
    scores = student.user_vector(History(given.items)) @ student.item_table()[1:].T
    ce = functional.cross_entropy(scores, given.targets[:, -1] - 1, reduction="sum")
    assert got["ce"] == pytest.approx(float(ce), rel=1e-5)


def test_with_a_suffix_the_last_position_is_read_behind_it() -> None:
    student, teacher = llm(2, 1, suffix=2), llm(4, 2, suffix=2, prefix=3)
    given = batch(last=True)
    side, theirs = Side.of(student, given), Side.of(teacher, given)
    assert torch.equal(side.after(1), student.hidden(History(given.items)).blocks[0][:, -1])
    assert torch.equal(theirs.after(2), teacher.hidden(History(given.items)).blocks[1][:, -1])
    assert torch.allclose(side.vectors, student.user_vector(History(given.items)), atol=1e-6)
    assert objective(student, teacher)(given)["loss"] > 0


def test_sasrec_can_learn_from_an_llm_of_the_same_width() -> None:
    config = SasrecConfig(layers=2, hidden=16, dropout=0.0)
    student = build_model(config, n_items=30, max_length=6, seed=0)
    got = objective(student, llm(4, 2))(batch())
    assert all(math.isfinite(float(value)) and float(value) > 0 for value in got.values())


HEALTHY = {"loss": 3.0, "ce": 1.0, "cos": 0.5, "norm": 0.2, "ms": 2.0}


@pytest.mark.parametrize("name", ["ce", *TERMS])
@pytest.mark.parametrize("value", [0.0, 5e-8, math.nan, math.inf, None])
def test_dead_terms_are_named_at_the_first_step(name: str, value: float | None) -> None:
    asked = objective(llm(2, 1), llm(4, 2))
    asked.check_first(HEALTHY)
    terms = {key: found for key, found in (HEALTHY | {name: value}).items() if found is not None}
    with pytest.raises(StageError, match=f"term '{name}'.*at the first step"):
        asked.check_first(terms)  # type: ignore[arg-type]


def test_terms_without_weight_may_be_missing() -> None:
    asked = objective(llm(2, 1), llm(4, 2), {"cos": 1.0, "norm": 0.0, "ms": 0.0})
    assert set(asked(batch())) == {"loss", "ce", "cos"}
    asked.check_first({"loss": 1.0, "ce": 1.0, "cos": 0.5})


def test_plain_cross_entropy_asks_no_teacher() -> None:
    student, given = llm(2, 1), batch()
    got = numbers(Distillation(student, loss=full_softmax, weights={"ce": 1.0})(given))
    assert set(got) == {"loss", "ce"} and got["loss"] == got["ce"]
    with pytest.raises(ValueError, match="teacher"):
        Distillation(student, loss=full_softmax, weights={"ce": 1.0}, teacher=llm(4, 2))
