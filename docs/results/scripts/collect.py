"""Takes the numbers of finished runs into docs/results/raw/runs.jsonl.

One row per candidate, comparison and stage.

A run without a report (its stages were made as jobs of their own, and are evaluated by another run) gives its
stages only. A stage that several runs share is taken once. With `--ranks` the report and the ranks of each
run's bench are kept in docs/results/raw/ranks/RUN, so that further seeds can be pooled with them later
(scripts/pooled.py); which item a user was tested with is left out, as that would tell the data.

Run: python docs/results/scripts/collect.py [--out FILE] [--ranks] RUN_FOLDER...
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import yaml

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "runs.jsonl"


def main() -> None:
    """Read each run's report.json and stage records, append what a later session needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--ranks", action="store_true")
    options = parser.parse_args()
    taken: set[str] = set()
    with options.out.open("a") as file:
        for run in options.runs:
            for row in [*of_report(run), *of_stages(run, taken)]:
                file.write(json.dumps(row) + "\n")
    for run in options.runs if options.ranks else ():
        if (run / "report.json").exists():
            keep_ranks(run, options.out.parent / "ranks" / run.name)


def keep_ranks(run: Path, folder: Path) -> None:
    """The report and, without targets, the ranks of the only bench of a run."""
    (ranks,) = run.glob("stages/*/ranks.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    report = json.loads((run / "report.json").read_text())
    kept = report | {"command": command_of(report, run)}
    (folder / "report.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    table = pl.read_parquet(ranks).drop("target").sort("candidate", "seed", "user")
    table.write_parquet(folder / "ranks.parquet", compression="zstd", compression_level=19)


def command_of(report: dict[str, Any], run: Path) -> str:
    """The command of a report, as if its run lay below `runs/`."""
    return re.sub(r"--out \S+", f"--out runs/{run.name}", report["command"])


def of_report(run: Path) -> Iterator[dict[str, Any]]:
    """A row per candidate and comparison."""
    if not (run / "report.json").exists():
        return
    report = json.loads((run / "report.json").read_text())
    common = {
        "run": run.name,
        "created": report["created"],
        "command": command_of(report, run),
        **{key: report[key] for key in ("recipe", "seeds", "dataset", "evaluation", "environment")},
    }
    yield from (common | {"candidate": candidate} for candidate in report["candidates"])
    yield from (common | {"comparison": comparison} for comparison in report["comparisons"])


def of_stages(run: Path, taken: set[str]) -> Iterator[dict[str, Any]]:
    """A row per stage that no earlier run had."""
    files = sorted(run.glob("stages/*/stage.json"))
    if not files:
        return
    top = next(folder for folder in (run, *run.parents) if (folder / "recipe.yaml").exists())  # of a variant
    recipe = yaml.safe_load((top / "recipe.yaml").read_text())
    for file in files:
        stage = json.loads(file.read_text())
        if stage["fingerprint"] not in taken and stage["stage"] != "bench":
            taken.add(stage["fingerprint"])
            kept = {key: stage[key] for key in ("stage", "name", "seconds", "config", "metrics")}
            yield {
                "run": run.name,
                "created": stage["created"],
                "data": recipe["data"]["source"],
                "seeds": stage["seeds"],
                "versions": stage["parts"]["versions"],
                "record": kept,
            }


if __name__ == "__main__":
    main()
