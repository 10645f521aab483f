"""How fast are the variants of an artifact on a CPU? Against the same model in torch, and exported by hand.

`torch` is this project's scorer in eager mode, which strips padding and batches by length; `torch bf16` is
that with all of the model in bfloat16; `padded torch` is the model called as it is, every history padded to
the full length, 32 users a call; `plain export` is that through `torch.onnx.export` with its defaults.

Through the machinery of `recpress bench`: one pinned child process per candidate, interleaved rounds, ratios
of medians with intervals, the A/A floor of torch beside them. Loads: one user as users come, one user with a
full history, 32 with full histories, 512 as users come. The run folder is one that recipes/deploy-cpu.yaml
made: its export has gated parity and quality, its bench has ranked all test users.

Compiled variants (docs/aot.md) are timed where the artifact holds them: `--set
stages.export.variants='[fast, scan-int8, int8-body, aot, aot-bf16]'` when the recipe is run.

Run: RECPRESS_DATA=DIR python docs/results/scripts/deploy_cpu.py RUN CHECKPOINT [--threads 1] [--rounds 200]
Appends one JSON row per load to docs/results/raw/deploy_cpu.jsonl.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.crew import TWIN, Crew, Limits
from bench.environment import environment
from bench.latency import Timed, latency, speedup
from bench.loads import LoadName, make_load
from bench.timing import time_cell
from recommender.data.config import DataConfig
from recommender.data.prepare import prepare
from recommender.scoring import ScorerRef
from recpress.given import bind

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "deploy_cpu.jsonl"
CELLS: tuple[tuple[LoadName, int], ...] = (("real", 1), ("full", 1), ("full", 32), ("real", 512))
TORCH, HALF, PADDED, PLAIN = "torch", "torch bf16", "padded torch", "plain export"
DRAWS = 10_000


def candidates(run: Path, checkpoint: Path) -> dict[str, ScorerRef]:
    """Torch in three ways, the export by hand, and every variant of the artifact."""
    (torch,) = bind(TORCH, checkpoint.resolve()).scorers
    half = replace(torch, name=HALF, opener="plain_export:open_half", options={})
    padded = replace(torch, name=PADDED, opener="plain_export:open_padded", options={})
    plain = replace(torch, name=PLAIN, runtime="onnxruntime", opener="plain_export:open_plain", options={})
    artifact = bind("artifact", (run / "artifacts" / "student-onnx").resolve())
    variants = {str(ref.options["variant"]): ref for ref in artifact.scorers}
    return {TORCH: torch, HALF: half, PADDED: padded, PLAIN: plain, **variants}


def row(timed: Timed, name: str) -> dict[str, Any]:
    """Median of one candidate, and its ratio to each yardstick."""
    found: dict[str, Any] = {"p50_ms": latency(timed, name).p50_ms}
    for against in (TORCH, HALF, PADDED, PLAIN):
        if name != against:
            ratio = speedup(timed, name, against, draws=DRAWS, seed=0)
            found[f"against {against}"] = {"ratio": ratio.ratio, "ci95": ratio.ci95}
    return found


def same(timed: Timed) -> dict[str, Any]:
    """What torch comes to against itself in a second process."""
    ratio = speedup(timed, TORCH, TORCH, draws=DRAWS, seed=0)
    return {"aa_floor_of_torch": ratio.aa_floor, "aa_ci95_of_torch": ratio.aa_ci95}


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--source", default="amazon-beauty")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-length", type=int, default=50)
    options = parser.parse_args()
    prepared = prepare(DataConfig(source=options.source, max_length=options.max_length))
    split = prepared.split("leave-one-out")
    before = os.getloadavg()[0]
    with Crew(Limits(opening=300, call=60), options.threads) as crew:
        refs = candidates(options.run, options.checkpoint)
        for name, ref in [*refs.items(), (TORCH + TWIN, refs[TORCH])]:
            crew.open(name, ref, "cpu")
        for load_name, batch in CELLS:
            load = make_load(
                load_name, prepared, split, batch=batch, rounds=options.rounds,
                max_length=options.max_length, seed=0,
            )  # fmt: skip
            timed = time_cell(
                crew, load, TORCH, k=10, rounds=options.rounds, warmup=5, seed=0,
                budget_seconds=options.seconds,
            )  # fmt: skip
            if crew.failures:
                raise SystemExit("; ".join(f"{name} {fault.text}" for name, fault in crew.failures.items()))
            found = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(["python", "docs/results/scripts/deploy_cpu.py", *sys.argv[1:]]),
                "source": options.source, "load": load_name, "batch": batch, "threads": options.threads,
                "length": load.length, "rounds": len(timed.seconds[TORCH]),
                "candidates": {name: row(timed, name) for name in refs}, **same(timed),
                "waited_share": {n: crew.waited_ns[n] / crew.called_ns[n] for n in crew.called_ns},
                "load_average_before": before,
                "environment": environment().model_dump(exclude_none=True),
            }  # fmt: skip
            with RESULTS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps({"load": load_name, "batch": batch, **found["candidates"]}))


if __name__ == "__main__":
    main()
