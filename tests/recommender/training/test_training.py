"""The loop: exact resume, determinism, the gradient of one big batch, and two processes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recommender.errors import StageError
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.models.interface import SequentialRecommender
from recommender.stage import Context
from recommender.training.batches import Batch, TrainingSequences
from recommender.training.config import TrainSettings
from recommender.training.loop import FitResult, fit
from recommender.training.objective import NextItem
from recommender.training.schedule import learning_rate
from recommender.training.state import saved_states
from recommender.training.validation import validation_quality
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from

from .conftest import N_ITEMS


def sasrec(dropout: float = 0.2) -> SequentialRecommender:
    return build_model(
        SasrecConfig(hidden=16, layers=1, dropout=dropout), n_items=N_ITEMS, max_length=10, seed=1
    )


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({"epochs": 4, "batch_size": 16, "micro_batch_tokens": 40, **changes})


def train(context: Context, **changes: Any) -> tuple[SequentialRecommender, FitResult]:
    model = sasrec()
    return model, fit(NextItem(model), model, settings(**changes), context)


def test_learns_what_there_is_to_learn(context: Context) -> None:
    _, result = train(context, epochs=25, learning_rate=1e-2, patience=None)
    assert result.best_ndcg is not None and result.best_ndcg > 0.9
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert result.epochs == 25 and result.steps == 25 * 4


def test_same_seed_same_weights_other_seed_other_weights(context: Context, tmp_path: Path) -> None:
    first, _ = train(context)
    second, _ = train(context_for(context.prepared, tmp_path / "b"))
    other, _ = train(context_for(context.prepared, tmp_path / "c", seed=2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


class Killed(Exception):
    """Stands for a SIGKILL at a step."""


@pytest.mark.parametrize("at", [1, 3, 4, 9, 15])
def test_resume_after_a_stop_at_any_step_changes_nothing(context: Context, tmp_path: Path, at: int) -> None:
    whole, result = train(context, save_every_seconds=0)
    stopped = context_for(context.prepared, tmp_path / f"stopped{at}")

    def stop(event: str, values: Mapping[str, Any]) -> None:
        if event == "step" and values["step"] == at:
            raise Killed

    with pytest.raises(Killed):
        train(replace(stopped, progress=stop), save_every_seconds=0)
    notes: list[str] = []
    resumed, again = train(
        replace(stopped, progress=lambda event, values: notes.append(event)), save_every_seconds=0
    )
    assert at == 1 or "note" in notes  # it went on, it did not begin again
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    drop = ("seconds",)
    assert [{k: v for k, v in e.items() if k not in drop} for e in again.history] == [
        {k: v for k, v in e.items() if k not in drop} for e in result.history
    ]
    assert len(saved_states(stopped.scratch)) == 1


def test_resume_after_a_kill_in_the_last_validation_changes_nothing(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, result = train(context, save_every_seconds=0, learning_rate=1e-2)
    stopped = context_for(context.prepared, tmp_path / "stopped")
    calls = iter(range(100))

    def last(*args: Any) -> dict[str, float]:
        if next(calls) == 3:
            raise Killed
        return validation_quality(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("recommender.training.loop.validation_quality", last)
        train(stopped, save_every_seconds=0, learning_rate=1e-2)
    resumed, again = train(stopped, save_every_seconds=0, learning_rate=1e-2)
    assert (again.best_ndcg, again.epochs, len(again.history)) == (result.best_ndcg, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_random_state_of_the_caller_is_untouched(context: Context) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(context)
    assert torch.equal(before, torch.get_rng_state())


def test_micro_batches_have_the_gradient_of_one_padded_batch(context: Context) -> None:
    model = sasrec(dropout=0.0).double()
    objective = NextItem(model)
    sequences = TrainingSequences(context.prepared, context.split, max_length=10)
    (step, *_) = sequences.epoch(0, seed=0, batch_size=30, tokens=25)
    assert len(step.batches) > 3
    for batch in step.batches:
        (objective(batch)["loss"] / step.positions).backward()
    pieces = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (whole, *_) = sequences.epoch(0, seed=0, batch_size=30, tokens=10**6)
    assert len(whole.batches) == 1 and whole.positions == step.positions
    (objective(whole.batches[0])["loss"] / whole.positions).backward()
    for piece, parameter in zip(pieces, model.parameters(), strict=True):
        torch.testing.assert_close(piece, parameter.grad)


def test_sequences_never_touch_held_out_items(tmp_path: Path) -> None:
    histories = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11, 12]]
    prepared = prepared_from(tmp_path, histories, 12)
    sequences = TrainingSequences(prepared, prepared.split("leave-one-out"), max_length=10)
    batch = sequences.batch(torch.arange(2).numpy(), 3)
    assert sequences.users.tolist() == [0, 2]  # user 1 has one training interaction: nothing to predict
    assert batch.items.tolist() == [[0, 1, 2], [0, 0, 9]]
    assert batch.targets.tolist() == [[0, 2, 3], [0, 0, 10]]
    last = TrainingSequences(prepared, prepared.split("leave-one-out"), max_length=10, positions="last")
    assert last.batch(torch.arange(2).numpy(), 3).targets.tolist() == [[0, 0, 3], [0, 0, 10]]


def test_an_epoch_visits_every_user_once_and_ranks_share_the_work(context: Context) -> None:
    sequences = TrainingSequences(context.prepared, context.split, max_length=10)
    total = int(sequences.lengths.sum())
    whole = list(sequences.epoch(3, seed=0, batch_size=7, tokens=50))
    assert sum(step.positions for step in whole) == total
    count = sum(int((batch.targets > 0).sum()) for step in whole for batch in step.batches)
    shares = [list(sequences.epoch(3, seed=0, batch_size=7, tokens=50, rank=r, world=2)) for r in range(2)]
    parts = [
        sum(int((b.targets > 0).sum()) for s in share for b in s.batches if s.weight) for share in shares
    ]
    assert count == total == sum(parts)


def test_more_processes_than_users_keep_step_with_weight_zero(context: Context) -> None:
    sequences = TrainingSequences(context.prepared, context.split, max_length=10)
    (step, *_) = sequences.epoch(0, seed=0, batch_size=2, tokens=50, rank=2, world=3)
    assert step.weight == 0 and step.batches


def test_early_stopping_keeps_the_best_weights(context: Context) -> None:
    _, result = train(context, epochs=60, learning_rate=3e-2, patience=2)
    assert result.epochs < 60
    scores = [entry["valid ndcg@10"] for entry in result.history]
    assert result.best_ndcg == max(scores) and scores[result.best_epoch - 1] == max(scores)
    assert result.epochs == result.best_epoch + 2


def test_a_loss_that_is_not_finite_ends_the_training(context: Context) -> None:
    class Broken(NextItem):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(batch)["loss"] * float("nan")}

    model = sasrec()
    with pytest.raises(StageError, match="not finite at step 1"):
        fit(Broken(model), model, settings(), context)


def test_first_terms_are_shown_to_the_objective(context: Context) -> None:
    class Picky(NextItem):
        def check_first(self, terms: dict[str, float]) -> None:
            raise StageError(f"saw {sorted(terms)}")

    model = sasrec()
    with pytest.raises(StageError, match=r"saw \['loss'\]"):
        fit(Picky(model), model, settings(), context)


def test_schedule_warms_up_and_falls_to_zero() -> None:
    plain = settings(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(step, 200, plain) for step in range(200)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(150, 200, settings(learning_rate=1.0, schedule="constant")) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "learning_rate": 0.5},
        {"loss": "gbce"},
        {"loss": "sampled-softmax"},
        {"positions": "last"},
    ],
)
def test_every_option_trains(context: Context, changes: dict[str, Any]) -> None:
    model = sasrec()
    chosen = settings(**{"epochs": 10, "learning_rate": 1e-2, **changes})
    result = fit(NextItem(model, loss=chosen.loss, negatives=5), model, chosen, context)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_precision_may_change_from_one_stage_to_the_next(context: Context, tmp_path: Path) -> None:
    for index, precision in enumerate(("bf16", "fp32", "fp64")):
        _, result = train(
            context_for(context.prepared, tmp_path / str(index)),
            epochs=3,
            precision=precision,
            learning_rate=1e-2,
        )
        assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.slow
def test_compiled_step_trains(context: Context) -> None:
    _, result = train(context, compile=True, epochs=2)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_trains_in_bf16_on_a_gpu(context: Context) -> None:
    _, result = train(replace(context, device="cuda"), epochs=25, learning_rate=1e-2, patience=None)
    assert result.best_ndcg is not None and result.best_ndcg > 0.9


LAUNCHED = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.training.config import TrainSettings
from recommender.training.loop import fit
from recommender.training.objective import NextItem
from tests.recommender.fixtures import context_for
data, out = Path(sys.argv[1]), Path(sys.argv[2])
prepared = Prepared(data)
losses = []
context = context_for(prepared, out, seed=3)
context = replace(context, progress=lambda event, v: losses.append(v["loss"]) if event == "step" else None)
model = build_model(SasrecConfig(hidden=16, layers=1, dropout=0.0), n_items=20, max_length=10, seed=1)
settings = TrainSettings(epochs=25, batch_size=15, optimizer="sgd", learning_rate=0.5, precision="fp64")
settings = settings.model_copy(update={"patience": None})
fit(NextItem(model), model, settings, context)
if os.environ.get("RANK", "0") == "0":
    world = os.environ.get("WORLD_SIZE", "1")
    (out / "losses.json").write_text(json.dumps({"world": world, "losses": losses}))
from accelerate import PartialState
PartialState().wait_for_everyone()
PartialState().destroy_process_group()  # gloo's threads abort a process that leaves without it
"""


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path / "data", cyclic_histories(60, N_ITEMS, 9), N_ITEMS)
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    plain = [sys.executable, str(script), str(prepared.path), str(tmp_path / "one")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch.append(str(script))  # (with --cpu, accelerate 1.15 starts one process only)
    for command in (plain, [*launch, str(prepared.path), str(tmp_path / "two")]):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "losses.json").read_text()) for name in ("one", "two"))
    assert (one["world"], two["world"]) == ("1", "2")
    assert len(one["losses"]) == len(two["losses"]) == 100
    assert one["losses"][0] > one["losses"][-1] + 0.1
    assert abs(one["losses"][99] - two["losses"][99]) < 1e-5
