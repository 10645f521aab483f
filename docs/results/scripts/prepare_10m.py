"""Prepares a log of 10 million rows: recpress against a plain polars + numpy script, time and memory.

Makes its own log (seeded), then starts each contestant in fresh processes, interleaved, and takes medians.
The plain script reads, filters (5-core), orders, splits and numbers the items in memory, takes ids for small
integers and stores nothing; recpress also digests the content of the file, proves that the ids may be read as
integers, makes string ids and writes the folder that the second run maps.

Run: python docs/results/scripts/prepare_10m.py [--rows 10000000] [--rounds 3] [--folder DIR]
Appends one JSON row to docs/results/raw/prepare.jsonl.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "prepare.jsonl"
USERS_PER_ROW, ITEMS_PER_ROW = 0.05, 0.01
KEYS = ("seconds", "cpu_seconds", "peak_mib")


def make_log(file: Path, rows: int) -> None:
    """Write user_id,item_id,timestamp: skewed users and items, rows in random order."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    n_users, n_items = int(rows * USERS_PER_ROW), int(rows * ITEMS_PER_ROW)
    activity = rng.lognormal(0.0, 1.0, n_users)
    popularity = 1.0 / np.arange(1, n_items + 1) ** 0.9
    users = np.searchsorted(np.cumsum(activity / activity.sum()), rng.random(rows))
    items = np.searchsorted(np.cumsum(popularity / popularity.sum()), rng.random(rows))
    pl.DataFrame(
        {
            "user_id": 1_000_000 + rng.permutation(n_users)[np.minimum(users, n_users - 1)],
            "item_id": rng.permutation(n_items)[np.minimum(items, n_items - 1)],
            "timestamp": rng.integers(1_500_000_000, 1_600_000_000, rows),
        }
    ).write_csv(file)


def plain(file: Path) -> dict[str, int]:
    """The plain script: polars reads, numpy does the rest, nothing is stored."""
    import numpy as np
    import polars as pl

    frame = pl.read_csv(file)
    users, items, times = (
        frame.drop_in_place(name).to_numpy() for name in ("user_id", "item_id", "timestamp")
    )
    users, items = (users - users.min()).astype(np.int32), (items - items.min()).astype(np.int32)
    while True:
        keep = (np.bincount(users) >= 5)[users] & (np.bincount(items) >= 5)[items]
        if keep.all():
            break
        users, items, times = users[keep], items[keep], times[keep]
    order = np.argsort((users.astype(np.int64) << 32) | (times - times.min()), kind="stable")
    items, times = items[order], times[order]
    present = np.flatnonzero(np.bincount(items))
    row = np.zeros(items.max() + 1, np.int32)
    row[present] = np.random.default_rng(0).permutation(len(present)) + 1
    items = row[items]
    counts = np.bincount(users)
    counts = counts[counts > 0]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    test, valid = items[offsets[1:] - 1], items[offsets[1:] - 2]
    assert len(test) == len(valid) == len(counts)
    return {"users": len(counts), "interactions": len(items)}


def ours(file: Path, cache: Path) -> dict[str, int]:
    """The same with recpress; repeats are kept, as the plain script does."""
    from recommender.data.config import DataConfig
    from recommender.data.prepare import prepare

    prepared = prepare(DataConfig(interactions=file, duplicates="keep"), cache)
    split = prepared.split("leave-one-out")
    assert int(split.test[0]) >= 0
    return {"users": prepared.n_users, "interactions": len(prepared.items)}


def contest(who: str, file: Path, cache: Path) -> dict[str, Any]:
    """Run one contestant in a fresh process; seconds without interpreter start, peak resident memory."""
    command = [sys.executable, __file__, "--child", who, "--log", str(file), "--cache", str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(who: str, file: Path, cache: Path) -> None:
    """The fresh process: libraries are imported before the clock starts."""
    import numpy  # noqa: F401
    import polars  # noqa: F401

    import recommender.data.prepare  # noqa: F401

    start, busy = time.perf_counter(), time.process_time()
    sizes = plain(file) if who == "plain" else ours(file, cache)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": busy, "peak_mib": peak, **sizes}))


def main(rows: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All rounds; the order of the contestants alternates from round to round."""
    file, cache = folder / "log.csv", folder / "cache"
    # In a process of its own: a child's peak memory starts at that of the process that forks it.
    subprocess.run(
        [sys.executable, __file__, "--child", "log", "--log", str(file), "--rows", str(rows)], check=True
    )
    taken: dict[str, list[dict[str, Any]]] = {"plain": [], "recpress": [], "second": []}
    for round_ in range(rounds):
        for who in ("plain", "recpress") if round_ % 2 == 0 else ("recpress", "plain"):
            if who == "recpress":
                shutil.rmtree(cache, ignore_errors=True)
            taken[who].append(contest(who, file, cache))
        taken["second"].append(contest("recpress", file, cache))
        assert taken["plain"][-1]["interactions"] == taken["recpress"][-1]["interactions"]
    figures = {
        who: {key: round(statistics.median(run[key] for run in runs), 3) for key in KEYS}
        for who, runs in taken.items()
    }
    return {
        "what": "prepare",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "docs/results/scripts/prepare_10m.py", *sys.argv[1:]]),
        "rows": rows,
        "rounds": rounds,
        "file_mib": round(file.stat().st_size / 2**20, 1),
        **{key: taken["recpress"][0][key] for key in ("users", "interactions")},
        **figures,
        "ratio": {key: round(figures["recpress"][key] / figures["plain"][key], 3) for key in KEYS},
        "all": taken,
        "environment": {
            "python": platform.python_version(),
            "polars": version("polars"),
            "numpy": version("numpy"),
            "cores": os.cpu_count(),
            "load_average_at_end": round(os.getloadavg()[0], 1),
            "machine": platform.machine(),
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the log is made (default: a temporary folder)")
    parser.add_argument("--child", choices=["log", "plain", "recpress"], help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "log":
        make_log(arguments.log, arguments.rows)
    elif arguments.child:
        child(arguments.child, arguments.log, arguments.cache)
    else:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            row = main(arguments.rows, arguments.rounds, Path(temporary))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(json.dumps(row))
