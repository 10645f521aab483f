"""Times training steps: every padded position in the softmax, against real positions in bucketed
micro-batches.

The model and the users are the same (amazon-beauty by default); only the way a step is cut and its loss
computed differs. Steps of the contestants are interleaved and medians taken; an epoch is the median times its
steps.

Run: RECPRESS_DATA=DIR python docs/results/scripts/training_speed.py [--threads 2] [--rounds 5]
Appends one JSON row to docs/results/raw/training_speed.jsonl.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.data.config import DataConfig
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, ModelConfig, SasrecConfig
from recommender.models.interface import History
from recommender.ranking import CALL_COST
from recommender.training.batches import Batch, TrainingSequences
from recommender.training.config import TrainSettings
from recommender.training.objective import NextItem
from recommender.training.schedule import make_optimizer

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "training_speed.jsonl"
BATCH, LENGTH = 256, 50
MODELS: dict[str, ModelConfig] = {
    "llama-8x64": LlmConfig(layers=8, hidden=64, heads=2, item_dim=64, dropout=0.0),
    "sasrec-2x64": SasrecConfig(layers=2, hidden=64, dropout=0.0),
}


class Padded(nn.Module):
    """The common way: logits of all positions of the padded batch, padding ignored by the loss only."""

    def __init__(self, objective: NextItem) -> None:
        super().__init__()
        self.model = objective.model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Summed over real positions, like `NextItem`."""
        final = self.model.hidden(History(batch.items)).final
        logits = self.model.project(final) @ self.model.item_table()[1:].T
        targets = (batch.targets - 1).masked_fill(batch.targets == 0, -100)
        return {
            "loss": functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
            )
        }


def pad(batch: Batch, length: int) -> Batch:
    """The same users padded to the full length."""
    items, targets = (
        functional.pad(rows, (length - rows.shape[1], 0)) for rows in (batch.items, batch.targets)
    )
    return Batch(items, targets)


def timed(loss: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one optimizer step over some micro-batches; cutting them is not counted."""
    positions = sum(int((batch.targets > 0).sum()) for batch in batches)
    started = time.perf_counter()
    for batch in batches:
        (loss(batch)["loss"] / positions).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def measure(
    config: ModelConfig, prepared: Prepared, sequences: TrainingSequences, rounds: int
) -> dict[str, list[float]]:
    """Seconds per step of both contestants, interleaved."""
    objective = NextItem(build_model(config, n_items=prepared.n_items, max_length=LENGTH, seed=0)).train()
    naive = Padded(objective)
    optimizer = make_optimizer(objective, TrainSettings())

    def cut(index: int, tokens: int, call_cost: int = CALL_COST) -> list[Batch]:
        steps = sequences.epoch(index, seed=0, batch_size=BATCH, tokens=tokens, call_cost=call_cost)
        return next(steps).batches

    def ours(index: int) -> float:
        return timed(objective, cut(index, TrainSettings().micro_batch_tokens), optimizer)

    def padded(index: int) -> float:
        return timed(naive, [pad(batch, LENGTH) for batch in cut(index, 10**9, 10**9)], optimizer)

    ours(0), padded(0)
    times: dict[str, list[float]] = {"ours": [], "padded": []}
    for index in range(1, rounds + 1):
        times["padded"].append(padded(index))
        times["ours"].append(statistics.median(ours(index * 3 + part) for part in range(3)))
    return times


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="amazon-beauty")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepared = prepare(DataConfig(source=options.source, max_length=LENGTH))
    sequences = TrainingSequences(prepared, prepared.split("leave-one-out"), max_length=LENGTH)
    steps_per_epoch = sequences.steps_per_epoch(BATCH)
    for name, config in MODELS.items():
        times = measure(config, prepared, sequences, options.rounds)
        medians = {key: statistics.median(values) for key, values in times.items()}
        row = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "model": name,
            "source": options.source,
            "batch_size": BATCH,
            "threads": options.threads,
            "seconds_per_step": medians,
            "seconds_per_epoch": {key: value * steps_per_epoch for key, value in medians.items()},
            "ratios": sorted(p / o for p, o in zip(times["padded"], times["ours"], strict=True)),
            "ratio_of_medians": medians["padded"] / medians["ours"],
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
