"""Scores a million users with `recpress score`, kills it a few times; nobody may be lost or doubled.

The users are those of a real log, drawn with replacement under new ids (so that their histories have real
lengths and items), without the items that the artifact does not know. First one job is left alone: it gives
users per second, and its memory over time. Then the same job is killed with SIGKILL at random moments and
started again by the same command until it is through. Its output must have every user exactly once with the
same answers: it must equal the first one to the last byte.

Run: python docs/results/scripts/score_million.py ARTIFACT [--data amazon-beauty] [--users 1000000]
`--data` is a folder below $RECPRESS_DATA, or any other, with `interactions.*` in it. Appends one JSON row to
docs/results/raw/score_million.jsonl.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from export.artifact import open_artifact
from recommender.data.origin import log_file
from recommender.files import sha256_file

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "score_million.jsonl"
SAMPLE_EVERY = 0.2  # seconds between looks at the memory of a job
POINTS = 60  # of a trace that are written down
MIB = 1024


def drawn_users(data: Path, known: list[str], users: int, seed: int) -> pl.DataFrame:
    """user_id and history (lists of ids, oldest first) of `users` users drawn from the log in a folder."""
    data = data if data.is_dir() else Path(os.environ.get("RECPRESS_DATA", ".")) / data
    file = log_file(data)
    if file is None:
        raise SystemExit(f"{data} holds no interactions.*")
    log = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file, infer_schema_length=None)
    order = next((name for name in ("timestamp", "position") if name in log.columns), None)
    log = log.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    log = log.filter(pl.col("item_id").is_in(known))
    log = log if order is None else log.sort(order, maintain_order=True)
    past = log.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
    draw = np.random.default_rng(seed).integers(0, len(past), users)
    ids = pl.Series("user_id", [f"u{number:09d}" for number in range(users)])
    return pl.DataFrame({"user_id": ids, "history": past.gather(draw)})


def command(options: argparse.Namespace, source: Path, output: Path) -> list[str]:
    """The command under test."""
    words = [sys.executable, "-m", "recpress", "score", str(options.artifact), "--input", str(source)]
    words += ["--output", str(output), "-k", str(options.k), "--threads", str(options.threads), "--json"]
    return words + (["--variant", options.variant] if options.variant else [])


class Job:
    """One start of the command, with its memory over time."""

    def __init__(self, words: list[str]) -> None:
        self.trace: list[tuple[float, float, float]] = []  # seconds, MiB of its own, MiB with mapped files
        self.began = time.monotonic()
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._look()  # once at least, however soon it is killed
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self._look()
            time.sleep(SAMPLE_EVERY)

    def _look(self) -> None:
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return  # it has just ended
        found = {name: int(kib) / MIB for name, kib in re.findall(r"(VmRSS|RssAnon):\s+(\d+)", text)}
        if found:
            self.trace.append((time.monotonic() - self.began, found["RssAnon"], found["VmRSS"]))

    def end(self, after: float | None = None) -> tuple[str, str] | None:
        """Wait for the end and give stdout and stderr; None when it was killed after so many seconds."""
        try:
            told = self.process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            return None
        if self.process.returncode:
            raise SystemExit(f"a start failed by itself with exit code {self.process.returncode}: {told[1]}")
        return told

    def memory(self) -> dict[str, Any]:
        """Peak, medians of the second and the last quarter of the time, and the trace in MiB."""
        thin = self.trace[:: max(1, len(self.trace) // POINTS)]
        quarter = max(1, len(self.trace) // 4)
        second, last = self.trace[quarter : 2 * quarter] or self.trace, self.trace[-quarter:]
        return {
            "peak_mib": round(max(total for _, _, total in self.trace), 1),
            "second_quarter_mib": round(statistics.median(own for _, own, _ in second), 1),
            "last_quarter_mib": round(statistics.median(own for _, own, _ in last), 1),
            "trace": [[round(seconds, 1), round(own, 1), round(total, 1)] for seconds, own, total in thin],
        }


def check(output: Path, users: pl.Series, k: int) -> dict[str, Any]:
    """Whether each user stands there once, with ranks 1 to at most k; reads the output by its users only."""
    rows = pl.scan_parquet(output)
    counts = rows.group_by("user_id").agg(
        pl.len().alias("rows"), pl.col("rank").n_unique().alias("ranks"), pl.col("rank").max().alias("last")
    )
    found = counts.collect(engine="streaming")
    whole = found.select(
        ((pl.col("rows") == pl.col("ranks")) & (pl.col("rows") == pl.col("last"))).all()
    ).item()
    present = found["user_id"].sort().equals(users.sort())
    return {
        "users_found": len(found),
        "every_user_once": bool(present and whole and int(found["last"].max()) <= k),  # type: ignore[arg-type]
        "rows": int(found["rows"].sum()),
    }


def killed_job(
    options: argparse.Namespace, source: Path, output: Path, calm_seconds: float
) -> dict[str, Any]:
    """Start the job again and again, kill it `kills` times, let the last start finish."""
    draw = random.Random(options.seed)
    resumed, peaks, kills = [], [], 0
    while True:
        # Moments are spread over what is left of the job, so that each start gets somewhere.
        share = calm_seconds / (options.kills + 1)
        after = draw.uniform(0.5, 1.5) * share if kills < options.kills else None
        job = Job(command(options, source, output))
        told = job.end(after)
        peaks.append(job.memory()["peak_mib"])
        if told is None:
            kills += 1
            parts = output.with_name(f"{output.name}.parts").glob("[0-9]*.parquet")
            resumed.append(max((int(part.stem.split("-")[1]) for part in parts), default=0))
            continue
        last = json.loads(told[0].splitlines()[-1])
        facts = {"done_at_kill": resumed, "last_resumed_after": last["resumed_after"], "peaks_mib": peaks}
        return {"kills": kills, **facts}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the users, score them undisturbed and disturbed, compare, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, default=Path("amazon-beauty"), help="folder with interactions.*")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where to put the input and the outputs; default: temporary"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that gets the row")
    options = parser.parse_args(arguments)
    known = list(open_artifact(options.artifact, verify=False).item_ids)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        source = Path(temporary) / "users.parquet"
        drawn = drawn_users(options.data, known, options.users, options.seed)
        drawn.write_parquet(source, row_group_size=50_000)
        users, lengths = drawn["user_id"], drawn["history"].list.len()
        mean_length = float(lengths.mean())  # type: ignore[arg-type]
        del drawn
        calm, killed = Path(temporary) / "calm.parquet", Path(temporary) / "killed.parquet"
        job = Job(command(options, source, calm))
        told = job.end()
        assert told is not None  # it had all the time
        document = json.loads(told[0].splitlines()[-1])
        disturbed = killed_job(options, source, killed, document["seconds"])
        found = check(killed, users, options.k)
        row = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "versions": {name: version(name) for name in ("onnxruntime", "polars", "numpy")},
            "data": options.data.name,
            "variant": document["variant"],
            "k": options.k,
            "threads": options.threads,
            "users": options.users,
            "mean_length": round(mean_length, 2),
            "seconds": document["seconds"],
            "users_per_second": document["users_per_second"],
            "memory": job.memory(),
            "killed": disturbed,
            **found,
            "equal": sha256_file(calm) == sha256_file(killed),
            "left_behind": sorted(path.name for path in Path(temporary).iterdir())
            != ["calm.parquet", "killed.parquet", "users.parquet"],
        }
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    whole = row["equal"] and row["every_user_once"] and not row["left_behind"]
    raise SystemExit(0 if whole and disturbed["kills"] == options.kills else 1)


if __name__ == "__main__":
    main()
