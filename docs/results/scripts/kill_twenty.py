"""Kills a run twenty times at random moments; the report that it ends with must equal an undisturbed run's.

The recipe is `quickstart` (made-up data) with a training state written every second. Each attempt is a
process of its own that gets SIGKILL after a random time; the next one is the same command again. Compared are
the quality of every candidate (to the last bit), the held-out ranks behind it (through the paired ratios) and
the kept blocks.

Run: python docs/results/scripts/kill_twenty.py [--kills 20] [--longest 25] [--seed 0] [--set KEY=VALUE ...]
Appends one JSON row to docs/results/raw/kill.jsonl.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "kill.jsonl"


def command(folder: Path, changes: list[str]) -> list[str]:
    """The command under test."""
    sets = [part for change in changes for part in ("--set", change)]
    return [sys.executable, "-m", "recpress", "run", "quickstart", "--out", str(folder), *sets]


def quality_of(folder: Path) -> dict[str, Any]:
    """All numbers of a report that must not depend on how often the run was stopped."""
    report = json.loads((folder / "report.json").read_text())
    return {
        "quality": {candidate["name"]: candidate["quality"] for candidate in report["candidates"]},
        "by_seed": {
            candidate["name"]: candidate.get("quality_by_seed") for candidate in report["candidates"]
        },
        "ratios": {
            f"{row['candidate']}/{row['against']}": {
                name: value["ratio"] for name, value in row["quality"].items()
            }
            for row in report["comparisons"]
        },
    }


def main() -> None:
    """Run undisturbed, run disturbed, compare, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shortest", type=float, default=3.0, help="seconds before the earliest kill")
    parser.add_argument("--longest", type=float, default=25.0, help="seconds before the latest kill")
    parser.add_argument("--seed", type=int, default=0)
    # which variants of an artifact pay is measured anew in every export, so names would differ by chance
    only = ["stages.student-onnx.variants=[]"]
    parser.add_argument("--set", action="append", default=only, dest="changes")
    options = parser.parse_args()
    changes = [
        "stages.teacher.save_every_seconds=1",
        "stages.student.save_every_seconds=1",
        "stages.bench.latency_seconds=4",
        *options.changes,
    ]
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        calm, disturbed = Path(temporary) / "calm", Path(temporary) / "disturbed"
        subprocess.run(command(calm, changes), check=True, capture_output=True)
        kills, early = 0, 0
        while kills < options.kills:
            run = subprocess.Popen(
                command(disturbed, changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            try:
                run.communicate(timeout=random.uniform(options.shortest, options.longest))
                early += 1
                if run.returncode != 0:
                    raise SystemExit(f"an attempt failed by itself with exit code {run.returncode}")
                if early > 1:
                    break  # complete: more attempts would find everything cached
            except subprocess.TimeoutExpired:
                run.kill()
                run.communicate()
                kills += 1
        last = subprocess.run(command(disturbed, changes), capture_output=True, text=True)
        if last.returncode:
            raise SystemExit(f"the last attempt failed: {last.stderr[-2000:]}")
        row = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "kills": kills,
            "equal": quality_of(calm) == quality_of(disturbed),
            "quality": quality_of(calm)["quality"],
            "left_behind": sorted(path.name for path in disturbed.rglob(".*") if path.name != ".lock"),
        }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    raise SystemExit(0 if row["equal"] and kills == options.kills else 1)


if __name__ == "__main__":
    main()
