"""The table of docs/results/compression.md, from rows that collect.py took out of the reports.

A line per candidate: quality against the teacher (and the student) with its interval, NDCG@10 of head, middle
and tail items, what it holds, and how long one user and 32 users take, as a multiple of the deepest model in
torch. Of a candidate that several reports hold, the newest row counts; ratios of time are those of its own
report.

Run: python docs/results/scripts/compression_table.py DATA [--rows FILE] [--deep deep] [--against teacher]
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROWS = Path(__file__).resolve().parents[1] / "raw" / "compression.jsonl"
PARTS = ("head", "middle", "tail")
HEADER = (
    "candidate", "HR@10", "NDCG@10", "against the teacher (95%)", "against the student (95%)", *PARTS,
    "body parameters", "files, MB", "memory, MB", "1 user, ms", "32 users, ms",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", help="name of the data set, as in the rows")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--deep", default="deep", help="the candidate that speeds refer to")
    parser.add_argument("--against", default="teacher")
    parser.add_argument("--load", default="real", choices=("real", "full"))
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    rows = [row for row in rows if row.get("dataset", {}).get("name") == options.data]
    print(f"| {' | '.join(HEADER)} |\n|---{'|---:' * (len(HEADER) - 1)}|")
    for line in lines(rows, deep=options.deep, against=options.against, load=options.load):
        print(f"| {' | '.join(line)} |")


def lines(rows: Sequence[dict[str, Any]], *, deep: str, against: str, load: str) -> Iterator[list[str]]:
    """The cells of each candidate, in the order in which the rows first name it."""
    candidates = {row["candidate"]["name"]: row for row in rows if "candidate" in row}  # the newest stays
    ratios = {
        (row["run"], row["comparison"]["candidate"], row["comparison"]["against"]): row["comparison"]
        for row in rows
        if "comparison" in row
    }
    times = {
        (row["run"], row["candidate"]["name"]): row["candidate"].get("latency", [])
        for row in rows
        if "candidate" in row
    }
    for name, row in candidates.items():
        run, found = row["run"], row["candidate"]
        parts = {each["bin"]: each["quality"] for each in found["slices"] if each["by"] == "popularity"}
        yield [
            name,
            f"{found['quality']['hr@10']:.4f}",
            f"{found['quality']['ndcg@10']:.4f}",
            _ratio(ratios.get((run, name, against))),
            _ratio(ratios.get((run, name, "student"))),
            *(
                f"{parts[part]['ndcg@10']:.4f}" if part in parts else ""
                for part in ("head", "middle", "tail")
            ),
            f"{found['body_parameters']:,}" if "body_parameters" in found else "",
            f"{found['size_bytes'] / 1e6:.2f}" if "size_bytes" in found else "",
            f"{found['peak_memory_bytes'] / 1e6:.0f}" if "peak_memory_bytes" in found else "",
            *(_time(found.get("latency", []), times.get((run, deep), []), load, batch) for batch in (1, 32)),
        ]


def _ratio(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    of = comparison["quality"]["ndcg@10"]
    return f"{of['ratio']:.1%} ({of['ci95'][0] * 100:.1f} to {of['ci95'][1] * 100:.1f})"


def _time(own: Sequence[dict[str, Any]], slow: Sequence[dict[str, Any]], load: str, batch: int) -> str:
    """`0.15 (47x)`: median milliseconds, and how many times faster than the reference of the same report."""
    mine, theirs = (
        next((row["p50_ms"] for row in rows if (row["load"], row["batch"]) == (load, batch)), None)
        for rows in (own, slow)
    )
    if mine is None:
        return ""
    return f"{mine:.2f}" + (f" ({theirs / mine:.1f}x)" if theirs else "")


if __name__ == "__main__":
    main()
