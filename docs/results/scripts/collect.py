"""Takes the numbers of finished runs into docs/results/raw/runs.jsonl, one row per candidate and run.

Run: python docs/results/scripts/collect.py RUN_FOLDER...
"""

import argparse
import json
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "runs.jsonl"


def main() -> None:
    """Read each run's report.json and stage records, append what a later session needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path)
    with RESULTS.open("a") as file:
        for run in parser.parse_args().runs:
            report = json.loads((run / "report.json").read_text())
            command = re.sub(r"--out \S+", f"--out runs/{run.name}", report["command"])
            common = {
                "created": report["created"],
                "command": command,
                "recipe": report["recipe"],
                "seeds": report["seeds"],
                "dataset": report["dataset"],
                "evaluation": report["evaluation"],
                "environment": report["environment"],
            }
            for candidate in report["candidates"]:
                file.write(json.dumps(common | {"candidate": candidate}) + "\n")
            for comparison in report["comparisons"]:
                file.write(json.dumps(common | {"comparison": comparison}) + "\n")
            for record in sorted(run.glob("stages/*/stage.json")):
                stage = json.loads(record.read_text())
                kept = {key: stage[key] for key in ("stage", "name", "seconds", "config", "metrics")}
                file.write(json.dumps(common | {"record": kept}) + "\n")


if __name__ == "__main__":
    main()
