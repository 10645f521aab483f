"""Times training steps of a deep and a shallow body of the same width: what an epoch costs less.

Steps of both are interleaved (the same users in the same round; they take turns in being first) and medians
taken; an epoch is the median times its steps. A step is timed with the making of its batches, which the
training loop makes, too. The ratio cannot reach the ratio of the depths: batches and the softmax over the
catalogue cost both the same.

Run: RECPRESS_DATA=DIR python docs/results/scripts/training_depth.py --hidden 64 [--deep 32] [--shallow 4]
Appends one JSON row to docs/results/raw/training_depth.jsonl.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.environment import environment
from recommender.data.config import DataConfig
from recommender.data.prepare import prepare
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.training.batches import TrainingSequences
from recommender.training.config import TrainSettings
from recommender.training.objective import NextItem
from recommender.training.schedule import make_optimizer

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "training_depth.jsonl"


class Trained:
    """A model of some depth, its optimizer, and how long each of its steps took."""

    def __init__(self, layers: int, options: argparse.Namespace, n_items: int) -> None:
        config = LlmConfig(
            layers=layers, hidden=options.hidden, heads=max(2, options.hidden // 64), item_dim=64, dropout=0.3
        )
        model = build_model(config, n_items=n_items, max_length=options.length, seed=0)
        self.objective = NextItem(model).train()
        self.optimizer = make_optimizer(self.objective, TrainSettings())
        self.seconds: list[float] = []
        self.body_parameters = sum(p.numel() for p in model.bodies()["user"].blocks.parameters())  # type: ignore[attr-defined]

    def step(self, sequences: TrainingSequences, index: int, batch_size: int) -> None:
        """One optimizer step with its batches, as the training loop makes them."""
        started = time.perf_counter()
        tokens = TrainSettings().micro_batch_tokens
        step = next(sequences.epoch(index, seed=0, batch_size=batch_size, tokens=tokens))
        for batch in step.batches:
            (self.objective(batch)["loss"] / step.positions).backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - started)


def interleave(models: Sequence[Trained], sequences: TrainingSequences, rounds: int, batch_size: int) -> None:
    """One step of each model per round, the first one is for warming up; who begins changes every round."""
    for index in range(rounds + 1):
        for model in models if index % 2 else reversed(models):
            model.step(sequences, index, batch_size)


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="amazon-beauty")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--deep", type=int, default=32)
    parser.add_argument("--shallow", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepared = prepare(DataConfig(source=options.source, max_length=options.length))
    sequences = TrainingSequences(prepared, prepared.split("leave-one-out"), max_length=options.length)
    models = {
        layers: Trained(layers, options, prepared.n_items) for layers in (options.deep, options.shallow)
    }
    interleave(list(models.values()), sequences, options.rounds, options.batch)
    deep, shallow = (models[layers].seconds[1:] for layers in (options.deep, options.shallow))
    steps = sequences.steps_per_epoch(options.batch)
    row = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        **vars(options),
        "seconds_per_epoch": {
            layers: statistics.median(m.seconds[1:]) * steps for layers, m in models.items()
        },
        "ratio_of_medians": statistics.median(deep) / statistics.median(shallow),
        "ratios": sorted(d / s for d, s in zip(deep, shallow, strict=True)),
        "blocks_parameters": {layers: model.body_parameters for layers, model in models.items()},
        "environment": environment().model_dump(exclude_none=True),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
