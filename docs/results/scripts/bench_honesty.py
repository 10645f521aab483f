"""Is the bench honest? A recommender against itself, and against itself with a slowdown that was planted.

Through the same machinery as `recpress bench`: children pinned to the same cores, interleaved rounds, ratios
of medians. The reference lives in two of them (A/A), the slowed one in a third: it measures each of its own
calls and keeps the core busy for a further share of that time. An honest bench finds the slowdown
(`detected`: the interval of the speed-up lies below 1 by more than the far end of the A/A interval, the same
rule as in the findings of a report), finds it as large as it is (`covers`: the interval holds the planted
ratio), and finds nothing between A and A.

Run: RECPRESS_DATA=DIR python docs/results/scripts/bench_honesty.py [--scorer CHECKPOINT-OR-ARTIFACT]
     [--source amazon-beauty] [--batch 32] [--slowdown 0.1] [--threads 1] [--rounds 200] [--repeats 5]
Without --scorer a SASRec (2 blocks, hidden 64) with the weights that it is born with: speed does not depend
on them. Appends one JSON row per repeat to docs/results/raw/bench_honesty.jsonl.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.crew import TWIN, Crew, Limits
from bench.environment import environment
from bench.latency import latency, speedup
from bench.loads import Load, make_load
from bench.report import wording
from bench.report.schema import Speedup
from bench.timing import time_cell
from recommender.data.config import DataConfig
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared
from recommender.scoring import HistoryArrays, Scorer, ScorerRef, TopK
from recpress.given import bind

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "bench_honesty.jsonl"
LENGTH, DRAWS = 50, 10_000
REFERENCE, SLOWED = "reference", "slowed"


class Slowed:
    """A scorer that is slower by a share of what each call takes anyway."""

    def __init__(self, inner: Scorer, share: float) -> None:
        self.inner, self.share = inner, share

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The answer of the inner scorer, late."""
        started = time.perf_counter_ns()
        answer = self.inner.top_k(history, k)
        now = time.perf_counter_ns()
        until = now + self.share * (now - started)
        while time.perf_counter_ns() < until:
            pass
        return answer


def open_slowed(path: Path, *, inner: str, share: float, **options: Any) -> Slowed:
    """What a child calls: open the scorer with its own opener, then slow it down."""
    name = options.pop("name", "inner")
    return Slowed(ScorerRef(name, "checkpoint", "torch", path, inner, options).open(), share)


@contextmanager
def scorer(path: Path | None, prepared: Prepared) -> Iterator[tuple[str, ScorerRef]]:
    """(what it is, how to open it): the given one, or a SASRec in a temporary folder."""
    if path is not None:
        bound = bind("given", path.resolve())
        ref = bound.scorers[0]
        yield f"{bound.kind} {path.name} ({ref.runtime})", ref
        return
    from recommender.checkpoint import save_checkpoint
    from recommender.models.build import build_model
    from recommender.models.config import SasrecConfig

    config = SasrecConfig(layers=2, hidden=64, dropout=0.0)
    model = build_model(config, n_items=prepared.n_items, max_length=LENGTH, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        save_checkpoint(model, checkpoint, prepared=prepared, model_config=config)
        yield "sasrec-2x64, torch, untrained", bind("sasrec", checkpoint).scorers[0]


def measured(ref: ScorerRef, load: Load, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One repeat: fresh processes, all rounds, the two ratios."""
    slow = replace(
        ref,
        opener="bench_honesty:open_slowed",
        options={**ref.options, "inner": ref.opener, "share": options.slowdown},
    )
    with Crew(Limits(opening=300, call=60), options.threads) as crew:
        for name, each in ((REFERENCE, ref), (REFERENCE + TWIN, ref), (SLOWED, slow)):
            crew.open(name, each, "cpu")
        before = os.getloadavg()[0]
        timed = time_cell(
            crew, load, REFERENCE, k=10, rounds=options.rounds, warmup=10, seed=seed, budget_seconds=600
        )
        if crew.failures:
            raise SystemExit("; ".join(f"{name} {failure.text}" for name, failure in crew.failures.items()))
        waited = {name: crew.waited_ns[name] / crew.called_ns[name] for name in crew.called_ns}
        disturbed = {"restless": dict(crew.restless), "waited_share": waited}
        cores = crew.cores
    found = speedup(timed, SLOWED, REFERENCE, draws=DRAWS, seed=seed)
    return {
        "threads": options.threads,
        "cores": cores,
        "rounds": len(timed.seconds[REFERENCE]),
        "p50_ms": latency(timed, REFERENCE).p50_ms,
        **verdict(found, options.slowdown),
        **disturbed,
        "load_average_before": before,
    }


def verdict(found: Speedup, slowdown: float) -> dict[str, Any]:
    """What the bench made of a planted slowdown, and whether that is right."""
    assert found.aa_floor is not None and found.aa_ci95 is not None and found.ci95 is not None
    expected = 1 / (1 + slowdown)
    return {
        "aa_floor": found.aa_floor,
        "aa_ci95": found.aa_ci95,
        "planted": slowdown,
        "ratio": found.ratio,
        "ci95": found.ci95,
        "expected_ratio": expected,
        "detected": wording.speed_tone(found) == "worse",
        "covers": found.ci95[0] <= expected <= found.ci95[1],
    }


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scorer", type=Path)
    parser.add_argument("--source", default="amazon-beauty")
    parser.add_argument("--load", choices=("real", "full"), default="full")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--slowdown", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prepared = prepare(DataConfig(source=options.source, max_length=LENGTH))
    load = make_load(
        options.load, prepared, prepared.split("leave-one-out"), batch=options.batch, rounds=options.rounds,
        max_length=LENGTH, seed=0,
    )  # fmt: skip
    with scorer(options.scorer, prepared) as (what, ref):
        for seed in range(options.repeats):
            row = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(["python", *sys.argv]),
                "scorer": what,
                "source": options.source,
                "load": options.load,
                "batch": options.batch,
                "seed": seed,
                **measured(ref, load, options, seed),
                "environment": environment().model_dump(exclude_none=True),
            }
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row))


if __name__ == "__main__":
    main()
