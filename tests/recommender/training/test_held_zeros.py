"""Training a sparse body: its zeros stay, whatever the optimizer, and a resumed training is the same."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, LoraSettings, ModelConfig, SasrecConfig
from recommender.models.interface import SequentialRecommender
from recommender.models.linears import body_linears
from recommender.models.zeros import HeldZeros, measure
from recommender.sparsity import Sparsity, noted
from recommender.stage import Bound, Context
from recommender.training.config import TrainSettings
from recommender.training.loop import fit
from recommender.training.objective import NextItem
from recommender.training.stage import TrainConfig, run
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from

N_ITEMS = 20
SASREC = SasrecConfig(hidden=16, layers=1, dropout=0.2)
SHORT = {"epochs": 3, "batch_size": 16, "micro_batch_tokens": 40, "learning_rate": 1e-2, "warmup_steps": 0}

Masks = Mapping[str, torch.Tensor]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return context_for(prepared_from(tmp_path / "data", cyclic_histories(60, N_ITEMS, 9), N_ITEMS), tmp_path)


def sparse(config: ModelConfig = SASREC) -> tuple[SequentialRecommender, HeldZeros, Masks]:
    """A model with half of its body's weights at zero, at random."""
    model = build_model(config, n_items=N_ITEMS, max_length=10, seed=1)
    linears = body_linears(model.bodies()["user"])
    draw = torch.Generator().manual_seed(0)
    for each in linears.values():
        each.matrix().masked_fill_(torch.rand(each.matrix().shape, generator=draw) < 0.5, 0)
    masks = {name: each.matrix() == 0 for name, each in linears.items()}
    return model, HeldZeros(linears.values()), masks


def zeros_left(model: SequentialRecommender, masks: Masks) -> bool:
    linears = body_linears(model.bodies()["user"])
    return not any(bool(linears[name].matrix()[zero].any()) for name, zero in masks.items())


def train(context: Context, *, hold: bool, **changes: Any) -> tuple[SequentialRecommender, Masks]:
    model, held, masks = sparse()
    settings = TrainSettings.model_validate(SHORT | changes)
    fit(NextItem(model), model, settings, context, held=held if hold else None)
    return model, masks


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"precision": "fp64"},
        {"max_grad_norm": None},
    ],
    ids=str,
)
def test_zeros_stay_and_the_other_weights_are_trained(context: Context, changes: dict[str, Any]) -> None:
    model, masks = train(context, hold=True, **changes)
    assert zeros_left(model, masks)
    start = body_linears(sparse()[0].bodies()["user"])
    for name, each in body_linears(model.bodies()["user"]).items():
        assert bool((each.matrix() != start[name].matrix())[~masks[name]].any())


def test_without_the_mask_they_are_filled(context: Context) -> None:
    model, masks = train(context, hold=False)
    assert not zeros_left(model, masks)


def test_the_gradient_at_zeros_counts_for_no_clipping(context: Context) -> None:
    """One clipped step of sgd is as long as the clipping allows, though the zeros do not move."""
    model, *_ = sparse()
    seen: list[float] = []

    class Watching(HeldZeros):
        def mask_gradients(self) -> None:
            super().mask_gradients()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            seen.append(float(torch.cat(gradients).norm()))

    linears = body_linears(model.bodies()["user"])
    watching = Watching(linears.values())
    settings = TrainSettings.model_validate(
        SHORT | {"max_steps": 1, "optimizer": "sgd", "max_grad_norm": 1e-3}
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(NextItem(model), model, settings, context, held=watching)
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()]).norm()
    assert seen[0] > 1e-3  # so it was clipped
    assert float(moved) == pytest.approx(1e-3 * SHORT["learning_rate"], rel=1e-2)


class Killed(Exception):
    """Stands for a SIGKILL at a step."""


def test_a_training_that_goes_on_has_the_same_zeros_and_the_same_weights(
    context: Context, tmp_path: Path
) -> None:
    whole, _ = train(context, hold=True, save_every_seconds=0)
    stopped = context_for(context.prepared, tmp_path / "stopped")

    def stop(event: str, values: Mapping[str, Any]) -> None:
        if event == "step" and values["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(replace(stopped, progress=stop), hold=True, save_every_seconds=0)
    resumed, masks = train(stopped, hold=True, save_every_seconds=0)
    assert zeros_left(resumed, masks)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


LLM = LlmConfig(layers=2, hidden=16, heads=2, item_dim=8, dropout=0.0)
LORA = LLM.model_copy(update={"lora": LoraSettings(r=2, targets=("up_proj", "q_proj"), dropout=0.0)})


@pytest.mark.parametrize("config", [SASREC, LLM, LORA], ids=["sasrec", "llm", "lora"])
@pytest.mark.parametrize("says_so", [True, False])
def test_a_checkpoint_that_notes_its_zeros_is_trained_with_them(
    config: ModelConfig, says_so: bool, context: Context, tmp_path: Path
) -> None:
    model, _, masks = sparse(config)
    rough = Sparsity(
        method="wanda",
        pattern="unstructured",
        sparsity=0.5,
        matrices=dict.fromkeys(masks, 0.0),
        zeros=0,
        weights=1,
    )
    note = measure(model.bodies()["user"], rough).model_dump(mode="json")
    about = {"seed": 1, **({"sparsity": note} if says_so else {})}
    folder = tmp_path / "start"
    save_checkpoint(model, folder, prepared=context.prepared, model_config=config, about=about)
    stage = TrainConfig.model_validate(
        {"stage": "train", "as": "more", "start_from": "start", **SHORT, "epochs": 2}
    )
    metrics = run(stage, {"start": Bound("start", "checkpoint", folder, tmp_path)}, context).metrics
    assert metrics["best_epoch"] > 0  # what is saved was trained
    after = load_checkpoint(context.folder / "checkpoint")
    assert zeros_left(after, masks) is says_so
    info = read_info(context.folder / "checkpoint")
    assert (noted(info.about, "") is not None) is says_so
    if says_so:
        assert info.about["sparsity"] == note
