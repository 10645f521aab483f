"""The training loop: accelerate for devices and processes, exact resume, early stopping on validation
NDCG@10.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from recommender.errors import StageError
from recommender.models.interface import SequentialRecommender
from recommender.models.zeros import HeldZeros
from recommender.ranking import call_cost
from recommender.stage import Context
from recommender.training.batches import Step, TrainingSequences
from recommender.training.config import TrainSettings
from recommender.training.schedule import learning_rate, make_optimizer, set_rate
from recommender.training.state import Counters, load_state, save_state, trainable
from recommender.training.validation import validation_quality


@dataclass(frozen=True)
class FitResult:
    """What a training came to."""

    best_ndcg: float | None  # validation NDCG@10 of the weights that were kept; None = never validated
    best_epoch: int
    epochs: int
    steps: int
    seconds: float  # in training steps, without validation
    seconds_per_epoch: float
    validation_seconds: float
    first_step: dict[str, float]  # every loss term, mean per position
    history: list[dict[str, Any]]  # per epoch: every term, lr, seconds, validation metrics

    def as_metrics(self) -> dict[str, Any]:
        """For stage.json."""
        return asdict(self)


def fit(
    objective: nn.Module,
    model: SequentialRecommender,
    settings: TrainSettings,
    context: Context,
    *,
    keep_start: bool = False,
    held: HeldZeros | None = None,
) -> FitResult:
    """Train the parameters of `objective` that require gradients; `model` ends with its best weights, in eval
    mode.

    `objective(batch)` returns sums over the batch's real positions; "loss" is minimised, after division by
    the real positions of the whole step, and every other term is logged. If it has `check_first(terms)`, that
    is called with the per-position means of the very first step. With `keep_start` the weights are validated
    before the first step (epoch 0 of the history) and stay unless an epoch is better. Zeros that are `held`
    are zero after every step. Goes on from `context.scratch` where an earlier run was stopped: the result is
    the same to the bit on the same machine. Raises StageError when the loss is not finite.
    """
    with torch.random.fork_rng():
        return _Fit(objective, model, settings, context, held).run(keep_start)


class _Fit:
    """One training, with its optimizer, counters and best weights."""

    def __init__(
        self,
        objective: nn.Module,
        model: SequentialRecommender,
        settings: TrainSettings,
        context: Context,
        held: HeldZeros | None,
    ) -> None:
        self.objective, self.model, self.settings, self.context = objective, model, settings, context
        self.held = held
        self.accelerator = accelerator_for(settings, context)
        if settings.precision == "fp64":
            objective.double()
        objective.to(self.accelerator.device)
        self.sequences = TrainingSequences(
            context.prepared, context.split, max_length=model.max_length, positions=settings.positions
        )
        steps = self.sequences.steps_per_epoch(settings.batch_size) * settings.epochs
        self.total = min(steps, settings.max_steps or steps)
        self.optimizer = make_optimizer(objective, settings)
        self.counters, self.best = Counters(), dict[str, Tensor]()
        found = load_state(context.scratch, objective, self.optimizer)
        if found is not None:
            self.counters, self.best = found
            context.progress("note", {"text": f"resumed at step {self.counters.step}"})
        step_of = torch.compile(objective, dynamic=True) if settings.compile else objective
        self.step_of, self.optimizer = self.accelerator.prepare(step_of, self.optimizer)
        self.saved_at = time.monotonic()

    def run(self, keep_start: bool) -> FitResult:
        """Epochs until the end, the patience, or max_steps."""
        counters, context = self.counters, self.context
        context.progress(
            "start", {"total": self.total, "epochs": self.settings.epochs, "done": counters.step}
        )
        if keep_start and not counters.history and not counters.step:
            start = {f"valid {name}": value for name, value in self._validate().items()}
            counters.history.append({"epoch": 0, "step": 0, "seconds": 0.0, **start})
            context.progress("epoch", counters.history[0])
        # a kill may have come between the last step and the validation that belongs to it
        while (counters.step < self.total or counters.step_in_epoch) and not counters.stopped:
            self._epoch()
            self._save()
        if self.best:
            with torch.no_grad():
                for name, tensor in trainable(self.objective).items():
                    tensor.copy_(self.best[name])
        self.model.eval()
        if self.settings.precision == "fp64":
            self.objective.float()
        self.objective.cpu()
        context.progress("done", {"ndcg@10": counters.best, "seconds": counters.seconds})
        return FitResult(
            best_ndcg=counters.best,
            best_epoch=counters.best_epoch,
            epochs=counters.epoch,
            steps=counters.step,
            seconds=counters.seconds,
            seconds_per_epoch=counters.seconds
            / max(counters.step / self.sequences.steps_per_epoch(self.settings.batch_size), 1e-9),
            validation_seconds=counters.validation_seconds,
            first_step=counters.first,
            history=counters.history,
        )

    def _epoch(self) -> None:
        counters, settings = self.counters, self.settings
        self.objective.train()
        steps = self.sequences.epoch(
            counters.epoch,
            seed=self.context.seed,
            batch_size=settings.batch_size,
            tokens=settings.micro_batch_tokens,
            call_cost=call_cost(self.accelerator.device),
            start=counters.step_in_epoch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        for step in steps:
            if counters.step >= self.total:
                break
            self._step(step)
            if time.monotonic() - self.saved_at >= settings.save_every_seconds:
                self._save()
        counters.epoch += 1
        counters.step_in_epoch = 0
        entry: dict[str, Any] = {"epoch": counters.epoch, "step": counters.step, "seconds": counters.seconds}
        entry |= {name: value / max(counters.positions, 1) for name, value in counters.sums.items()}
        counters.sums, counters.positions = {}, 0
        if counters.epoch % settings.validate_every == 0 or counters.step >= self.total:
            entry |= {f"valid {name}": value for name, value in self._validate().items()}
        counters.history.append(entry)
        self.context.progress("epoch", entry)

    def _step(self, step: Step) -> None:
        """One optimizer step; sums are divided by the real positions of all processes, as one big batch
        would be.
        """
        started, counters = time.perf_counter(), self.counters
        accelerator = self.accelerator
        torch.manual_seed(hash_of(self.context.seed, counters.step, accelerator.process_index))
        rate = learning_rate(counters.step, self.total, self.settings)
        set_rate(self.optimizer.param_groups, rate)
        terms: dict[str, Tensor] = {}
        for index, batch in enumerate(step.batches):
            last = index == len(step.batches) - 1
            with accelerator.autocast(), _sync(accelerator, self.step_of, last):
                sums = self.step_of(batch.to(accelerator.device))
                # gradients are averaged over processes, hence the number of them
                scale = step.weight * accelerator.num_processes / step.positions
                accelerator.backward(sums["loss"] * scale)
            for name, value in sums.items():
                terms[name] = terms.get(name, value.new_zeros(())) + value.detach() * step.weight
        values = {name: float(value) for name, value in self._over_processes(terms).items()}
        self._check(values, step)
        if self.held is not None:
            self.held.mask_gradients()
        if self.settings.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.objective.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        if self.held is not None:
            self.held.mask_weights()
        self.optimizer.zero_grad()
        self._count(values, step, rate, time.perf_counter() - started)

    def _over_processes(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.accelerator.num_processes == 1:
            return dict(terms)
        return {name: self.accelerator.reduce(value, "sum") for name, value in terms.items()}

    def _check(self, sums: Mapping[str, float], step: Step) -> None:
        """The first step's terms are shown to the objective; a loss that is not finite ends the training."""
        means = {name: value / step.positions for name, value in sums.items()}
        if self.counters.step == 0:
            self.counters.first = means
            check: Callable[[dict[str, float]], None] | None = getattr(self.objective, "check_first", None)
            if check is not None:
                check(means)
        if not all(-float("inf") < value < float("inf") for value in means.values()):
            raise StageError(
                f"the loss is not finite at step {self.counters.step + 1}: {means}",
                fix="lower learning_rate, or clip harder with max_grad_norm",
            )

    def _count(self, sums: Mapping[str, float], step: Step, rate: float, seconds: float) -> None:
        counters = self.counters
        counters.step += 1
        counters.step_in_epoch = step.index + 1
        counters.seconds += seconds
        counters.positions += step.positions
        for name, value in sums.items():
            counters.sums[name] = counters.sums.get(name, 0.0) + value
        self.context.progress(
            "step",
            {
                "step": counters.step,
                "total": self.total,
                "epoch": counters.epoch + 1,
                "lr": rate,
                **{name: value / step.positions for name, value in sums.items()},
                **({} if counters.best is None else {"ndcg@10": counters.best}),
                "seconds_left": counters.seconds / counters.step * (self.total - counters.step),
            },
        )

    def _validate(self) -> dict[str, float]:
        """Validation metrics by the main process; keeps the best weights and counts rounds without a better
        one.
        """
        started = time.perf_counter()
        shared: list[Any] = [None]
        if self.accelerator.is_main_process:
            shared[0] = validation_quality(self.model, self.context, self.settings.validation_users)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(shared)
        metrics: dict[str, float] = shared[0]
        counters = self.counters
        if counters.best is None or metrics["ndcg@10"] > counters.best:
            counters.best, counters.best_epoch, counters.bad_rounds = metrics["ndcg@10"], counters.epoch, 0
            self.best = {
                name: tensor.detach().cpu().clone() for name, tensor in trainable(self.objective).items()
            }
        else:
            counters.bad_rounds += 1
            counters.stopped = (
                self.settings.patience is not None and counters.bad_rounds >= self.settings.patience
            )
        counters.validation_seconds += time.perf_counter() - started
        return metrics

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            save_state(self.context.scratch, self.objective, self.optimizer, self.best, self.counters)


def accelerator_for(settings: TrainSettings, context: Context) -> Accelerator:
    """Device, processes and precision; bf16 only on a GPU, since a CPU is slower with it."""
    mixed = settings.precision
    if mixed == "auto":
        mixed = "bf16" if context.device == "cuda" else "fp32"
    mode = "bf16" if mixed == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mode:
        AcceleratorState._reset_state()  # one per process, else: an earlier stage's precision would stay
    return Accelerator(mixed_precision=mode, cpu=context.device == "cpu")


def hash_of(*numbers: int) -> int:
    """A seed from several numbers, well mixed, so that neighbours share no random stream."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9) % 2**63
        mixed ^= mixed >> 29
    return mixed


def _sync(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """Gradients travel between processes only with the last micro-batch of a step."""
    from contextlib import nullcontext

    return nullcontext() if last else accelerator.no_sync(module)
