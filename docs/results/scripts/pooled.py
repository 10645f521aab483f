"""Is a candidate non-inferior, on each data set and over all of them? From the ranks that benches left.

Reads `ranks.parquet` (and the report.json beside it) of several runs; no model is opened. Runs on the same
data set are joined: one may hold the candidate, another what it is compared with, a third another seed.
Metrics of a user are averaged over seeds, then users are drawn within each data set. Non-inferior: the lower
bound of the ratio lies above 0.97 for the mean over data sets, and above 0.95 on each of them. Two
weightings: `mean` is the mean of the data sets' ratios, so each data set weighs the same; this one decides.
`all users` is the ratio of the means over all users, so a data set weighs as its users and their metric do.
The A/A half-width beside each ratio says how far two seeds of the reference lie apart (bench/noise.py).

Run: python docs/results/scripts/pooled.py RUN... --candidate C --against T [--also-against U]...
RUN:NAME=OTHER[,NAME=OTHER] renames candidates of a run, where names stand for something else in another.
Appends one JSON row per comparison to docs/results/raw/pooled.jsonl (--out) and prints a table.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.compare import Ratio, pooled_ratio
from bench.noise import pooled_half_width
from bench.ranks import Evaluated, join, read_ranks
from recommender.errors import InputError, RecpressError

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "pooled.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, append, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--candidate", required=True)
    parser.add_argument("--against", required=True)
    parser.add_argument("--also-against", action="append", default=[])
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    try:
        datasets = join(read_ranks(*_run(text, options.metric)) for text in options.runs)
        rows = [
            _row(datasets, options.candidate, against, draws=options.draws, seed=options.seed)
            for against in (options.against, *options.also_against)
        ]
    except RecpressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    about = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(options),
    }
    with options.out.open("a") as file:
        for row in rows:
            file.write(json.dumps(about | row) + "\n")
    print("\n".join(line for row in rows for line in _lines(row)))
    return 0


def _command(options: argparse.Namespace) -> str:
    """The command, with runs as if they lay below `runs/`."""
    others = [f"--also-against {name}" for name in options.also_against]
    return " ".join(
        [
            "python docs/results/scripts/pooled.py",
            *(f"runs/{Path(text).name}" for text in options.runs),
            f"--candidate {options.candidate} --against {options.against}",
            *others,
            f"--metric {options.metric} --draws {options.draws} --seed {options.seed}",
        ]
    )


def _run(text: str, metric: str) -> tuple[Path, str, dict[str, str]]:
    """RUN or RUN:NAME=OTHER,NAME=OTHER."""
    folder, colon, renames = text.rpartition(":")
    if not colon or "=" not in renames:
        return Path(text), metric, {}
    return Path(folder), metric, dict(pair.split("=", 1) for pair in renames.split(","))


def _row(
    datasets: Sequence[Evaluated], candidate: str, against: str, *, draws: int, seed: int
) -> dict[str, Any]:
    found = pooled_ratio(
        {each.dataset: (each.mean_of(candidate), each.mean_of(against)) for each in datasets},
        draws=draws,
        seed=seed,
    )
    if found is None:
        raise InputError(f"{datasets[0].metric} of {against!r} is 0 on a data set: there is no ratio")
    noise = {
        each.dataset: pooled_half_width({each.dataset: each.of(against)}, draws=draws, seed=seed)
        for each in datasets
    }
    every = {each.dataset: each.of(against) for each in datasets}
    mean_noise = pooled_half_width(every, draws=draws, seed=seed)
    return {
        "metric": datasets[0].metric,
        "candidate": candidate,
        "against": against,
        "draws": draws,
        "non_inferior": found.non_inferior(),
        "mean": _said(found.mean, mean_noise),
        "all users": _said(found.users, None),
        "datasets": [
            {
                "name": each.dataset,
                "users": len(each.users),
                "seeds": sorted(each.of(candidate)),
                "seeds_against": sorted(each.of(against)),
                **_said(found.each[each.dataset], noise[each.dataset]),
            }
            for each in datasets
        ],
    }


def _said(ratio: Ratio, noise: float | None) -> dict[str, Any]:
    said = {"ratio": ratio.ratio, "ci95": ratio.ci95, "p_value": ratio.p_value, "aa_half_width": noise}
    return {key: value for key, value in said.items() if value is not None}


def _lines(row: dict[str, Any]) -> Iterator[str]:
    """A Markdown table of one comparison."""
    verdict = "non-inferior" if row["non_inferior"] else "not shown to be non-inferior"
    yield f"\n{row['candidate']} against {row['against']}, {row['metric'].upper()}: {verdict}\n"
    yield "| data set | users | seeds | ratio | 95% interval | A/A half-width |"
    yield "|---|--:|---|--:|---|--:|"
    for each in row["datasets"]:
        seeds = f"{len(each['seeds'])} / {len(each['seeds_against'])}"
        yield f"| {each['name']} | {each['users']:,} | {seeds} | {_cells(each)} |"
    users = sum(each["users"] for each in row["datasets"])
    yield f"| **mean of data sets** | {users:,} | | {_cells(row['mean'])} |"
    yield f"| all users | {users:,} | | {_cells(row['all users'])} |"


def _cells(said: dict[str, Any]) -> str:
    interval = "none" if "ci95" not in said else "{:.3f} to {:.3f}".format(*said["ci95"])
    noise = f"{said['aa_half_width']:.3f}" if "aa_half_width" in said else ""
    return f"{said['ratio']:.3f} | {interval} | {noise}"


if __name__ == "__main__":
    sys.exit(main())
