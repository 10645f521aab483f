"""The table of docs/results/compression.md, from rows that collect.py took out of the reports.

A line per candidate: quality against the teacher with its interval, NDCG@10 of head, middle and tail items,
what it holds, and how long one user and 32 users take; in brackets how many times faster that is than the
deepest model in torch, and than the float32 student as an artifact. Of a candidate that several reports hold,
quality is that of the one that ranked most users (and left out where other candidates were ranked by more:
such a report is for speed), times are those of the one that timed most batch sizes, the newest of several.
Both ratios of a cell are of one report: milliseconds of different lines may not be.

Run: python docs/results/scripts/compression_table.py RECIPE [--rows FILE] [--deep deep] [--against teacher]
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROWS = Path(__file__).resolve().parents[1] / "raw" / "compression.jsonl"
PARTS = ("head", "middle", "tail")
HEADER = (
    "candidate", "HR@10", "NDCG@10", "against the teacher (95%)", *PARTS,
    "body parameters", "files, MB", "memory, MB", "1 user, ms", "32 users, ms",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", help="name of the recipe that made the rows")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--deep", default="deep", help="the candidate that speeds refer to")
    parser.add_argument("--student", default="student-onnx", help="the float32 artifact, likewise")
    parser.add_argument("--against", default="teacher")
    parser.add_argument("--load", default="real", choices=("real", "full"))
    parser.add_argument("--all", action="store_true", help="canonical graphs, too")
    parser.add_argument("--no-times", action="store_true", help="of a machine that was busy: leave them out")
    options = parser.parse_args(arguments)
    shown = slice(0, -3 if options.no_times else None)  # memory and times stand last
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    rows = [row for row in rows if row.get("recipe") == options.recipe]
    print(f"| {' | '.join(HEADER[shown])} |\n|---{'|---:' * (len(HEADER[shown]) - 1)}|")
    for line in lines(
        rows, yardsticks=(options.deep, options.student), against=options.against, load=options.load,
        everything=options.all,
    ):  # fmt: skip
        print(f"| {' | '.join(line[shown])} |")


def lines(
    rows: Sequence[dict[str, Any]], *, yardsticks: Sequence[str], against: str, load: str,
    everything: bool = False,
) -> Iterator[list[str]]:  # fmt: skip
    """The cells of each candidate, in the order in which the rows first name it.

    `yardsticks`: the candidates that times are divided into, each by those of the same report.

    Unless `everything` is wanted, the canonical graph of an artifact that has `fast`, too, is left out.
    """
    reports: dict[str, list[dict[str, Any]]] = {}  # by the moment at which they were made
    for row in rows:
        if "candidate" in row:
            reports.setdefault(row["candidate"]["name"], []).append(row)
    ratios = {
        (row["created"], row["comparison"]["candidate"], row["comparison"]["against"]): row["comparison"]
        for row in rows
        if "comparison" in row
    }
    most = max(row["evaluation"]["users"] for own in reports.values() for row in own)
    compared = [
        {row["created"]: row["candidate"].get("latency", []) for row in reports.get(name, ())}
        for name in yardsticks
    ]
    for name, own in reports.items():
        if not everything and (f"{name}:fast" in reports or name.endswith(":fp32")):
            continue
        # the newest of those that ranked most users, and the newest that timed most batch sizes
        judged = max(reversed(own), key=lambda row: row["evaluation"]["users"])
        timed = max(reversed(own), key=lambda row: len(row["candidate"].get("latency", [])))
        found, spent = judged["candidate"], timed["candidate"]
        beside = [of.get(timed["created"], []) for of in compared]
        ranked = judged["evaluation"]["users"] == most
        yield [
            name,
            *(_quality(found, ratios.get((judged["created"], name, against))) if ranked else [""] * 6),
            f"{found['body_parameters']:,}" if "body_parameters" in found else "",
            f"{found['size_bytes'] / 1e6:.2f}" if "size_bytes" in found else "",
            f"{spent['peak_memory_bytes'] / 1e6:.0f}" if "peak_memory_bytes" in spent else "",
            *(_time(spent.get("latency", []), beside, load, batch) for batch in (1, 32)),
        ]


def _quality(found: dict[str, Any], comparison: dict[str, Any] | None) -> list[str]:
    """HR@10, NDCG@10, its ratio, and NDCG@10 of the items of each part."""
    parts = {each["bin"]: each["quality"] for each in found["slices"] if each["by"] == "popularity"}
    return [
        f"{found['quality']['hr@10']:.4f}",
        f"{found['quality']['ndcg@10']:.4f}",
        _ratio(comparison),
        *(f"{parts[part]['ndcg@10']:.4f}" if part in parts else "" for part in PARTS),
    ]


def _ratio(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    of = comparison["quality"]["ndcg@10"]
    return f"{of['ratio']:.1%} ({of['ci95'][0] * 100:.1f} to {of['ci95'][1] * 100:.1f})"


def _time(
    own: Sequence[dict[str, Any]], others: Sequence[Sequence[dict[str, Any]]], load: str, batch: int
) -> str:
    """`0.33 (25.1x, 1.02x)`: median milliseconds, and how many times faster than each of the others."""
    mine, *theirs = (
        next((row["p50_ms"] for row in rows if (row["load"], row["batch"]) == (load, batch)), None)
        for rows in (own, *others)
    )
    if mine is None:
        return ""
    ratios = [_times(each / mine) for each in theirs if each]
    return f"{mine:.2f}" + (f" ({', '.join(ratios)})" if ratios else "")


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"


if __name__ == "__main__":
    main()
