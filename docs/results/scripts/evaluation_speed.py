"""Times the full-ranking evaluation of a SASRec on all users, and its scoring stage against its own ceiling.

End to end: histories out of the memory map, user vectors, scores over the catalogue, seen items masked, exact
ranks. Scoring stage: user vectors given; top-10 of every user. Ceiling: one GEMM and one top-10 per 256
random vectors, nothing else. All three are interleaved in the same process; medians.

Run: RECPRESS_DATA=DIR python docs/results/scripts/evaluation_speed.py [--threads 2] [--rounds 7]
Appends one JSON row to docs/results/raw/evaluation_speed.jsonl.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recommender.data.config import DataConfig, EvaluationConfig
from recommender.data.prepare import prepare
from recommender.evaluate import histories, quality
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.ranking import USERS_PER_PRODUCT, TorchScorer

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "evaluation_speed.jsonl"
LENGTH, HIDDEN, K = 50, 64, 10


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="amazon-beauty")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepared = prepare(DataConfig(source=options.source, max_length=LENGTH))
    split, evaluation = prepared.split("leave-one-out"), EvaluationConfig()
    model = build_model(SasrecConfig(hidden=HIDDEN), n_items=prepared.n_items, max_length=LENGTH, seed=0)
    scorer = TorchScorer(model)
    users, ends = split.targets("test")
    order = np.argsort(ends, kind="stable")
    users, ends = users[order], ends[order]
    table, vectors = torch.randn(prepared.n_items + 1, HIDDEN), torch.randn(len(users), HIDDEN)

    def ceiling() -> None:
        for start in range(0, len(vectors), USERS_PER_PRODUCT):
            (vectors[start : start + USERS_PER_PRODUCT] @ table.T).topk(K, dim=1)

    def scoring() -> None:
        for start in range(0, len(users), 4096):
            part = slice(start, start + 4096)
            scorer.top_of_vectors(vectors[part], seen[start], K)

    seen = {
        start: histories(prepared, users[start : start + 4096], ends[start : start + 4096], LENGTH).seen
        for start in range(0, len(users), 4096)
    }
    contestants: dict[str, Callable[[], Any]] = {
        "end_to_end": lambda: quality(scorer, prepared, split, "test", evaluation, max_length=LENGTH),
        "scoring": scoring,
        "ceiling": ceiling,
    }
    for work in contestants.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, work in contestants.items():
            times[name].append(seconds(work))
    rate = {name: len(users) / statistics.median(values) for name, values in times.items()}
    row = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "source": options.source,
        "users": len(users),
        "threads": options.threads,
        "users_per_second": rate,
        "scoring_share_of_ceiling": rate["scoring"] / rate["ceiling"],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
