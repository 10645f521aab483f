"""Time the heads of an artifact (exact, 8-bit scan, 4-bit scan), and count what the scans find.

    python docs/results/scripts/head_speed.py --items 100000 --width 64
    RECPRESS_DATA=DIR python docs/results/scripts/head_speed.py --checkpoint FOLDER --recipe RECIPE

Vectors: made up around centres in 24 dimensions, with noise, users near items; or the item table of a
checkpoint and its vectors of test users. One thread, rounds interleaved; medians of CPU time of the calling
thread (other processes do not count) and of wall time, and their ratios to `exact`. Recall is the share of
the exact ten best that the lists of a scan hold.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from export.catalogue import padded_rows
from export.head import write_head
from export.runtime import open_session
from export.variants import HeadKind

Float32 = NDArray[np.float32]
Call = Callable[[Float32], NDArray[np.int64]]
USERS = 1024


def made_up(items: int, width: int) -> tuple[Float32, Float32]:
    """(item vectors [items, width], user vectors [USERS, width])."""
    rng = np.random.default_rng(0)
    latent = min(24, width)
    basis = rng.normal(size=(latent, width))
    centres = rng.normal(size=(2000, latent))[rng.zipf(1.5, items) % 2000]
    vectors = (centres + 0.5 * rng.normal(size=(items, latent))) @ basis
    vectors = (vectors + 0.3 * rng.normal(size=vectors.shape)).astype(np.float32)
    near = vectors[rng.integers(0, items, USERS)]
    return vectors, (near + rng.normal(size=near.shape) * near.std()).astype(np.float32)


def trained(checkpoint: Path, recipe: Path) -> tuple[Float32, Float32]:
    """The same of a checkpoint, of test users of the data set of a recipe."""
    import torch
    import yaml

    from export.measure import samples
    from recommender.checkpoint import load_checkpoint
    from recommender.data.config import DataConfig
    from recommender.data.prepare import prepare
    from recommender.models.interface import History

    prepared = prepare(DataConfig.model_validate(yaml.safe_load(recipe.read_text())["data"]))
    model = load_checkpoint(checkpoint, prepared=prepared).eval()
    split = prepared.split("leave-one-out")
    *_, sample = samples(prepared, split, model.max_length, USERS, mask_seen=True, seed=0)
    with torch.inference_mode():
        users = model.user_vector(History(torch.from_numpy(sample.histories.items))).numpy()
    return model.item_table().detach().numpy()[1:], users


def heads(folder: Path, vectors: Float32, top_k: int) -> dict[str, Call]:
    """Each head, and how to ask it."""
    table = np.zeros((padded_rows(len(vectors)), vectors.shape[1]), np.float32)
    table[1 : len(vectors) + 1] = vectors
    np.save(folder / "item_table.npy", table)
    mapped = np.load(folder / "item_table.npy", mmap_mode="r").view(np.ndarray)

    def call(kind: HeadKind) -> Call:
        write_head(folder, f"{kind}.onnx", kind=kind, n_items=len(vectors), top_k=top_k)
        session = open_session(folder / f"{kind}.onnx", 1, "cpu")
        reads = {"table": mapped} if "table" in [each.name for each in session.get_inputs()] else {}

        def ask(users: Float32) -> NDArray[np.int64]:
            nothing = np.zeros((len(users), 1), np.int64)
            rows: NDArray[np.int64] = session.run(["top_items"], {"user": users, "seen": nothing, **reads})[0]
            return rows

        return ask

    kinds: tuple[HeadKind, ...] = ("exact", "int8", "int4")
    return {kind: call(kind) for kind in kinds}


def compare(calls: dict[str, Call], users: Float32, rounds: int) -> None:
    """Print medians and ratios for users of one batch size after another."""
    cpu: dict[str, list[float]] = defaultdict(list)
    wall: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 2):
        for name, call in calls.items():
            before, start = time.thread_time(), time.perf_counter()
            call(users)
            if turn >= 2:  # the first rounds warm up
                cpu[name].append(time.thread_time() - before)
                wall[name].append(time.perf_counter() - start)
    base = median(cpu["exact"]), median(wall["exact"])
    print(f"batch {len(users)}: {rounds} rounds")
    for name in calls:
        one, other = median(cpu[name]), median(wall[name])
        speed = f"{base[0] / one:5.2f}x {base[1] / other:5.2f}x"
        print(f"  {name:8s} cpu {1e3 * one:9.3f} ms  wall {1e3 * other:9.3f} ms   {speed}", flush=True)


def found(calls: dict[str, Call], users: Float32) -> None:
    """Print the recall of each scan."""
    lists = {
        name: np.concatenate([call(users[i : i + 16]) for i in range(0, len(users), 16)])[:, :10]
        for name, call in calls.items()
    }
    for name, rows in lists.items():
        shared = [np.intersect1d(*pair).size / 10 for pair in zip(rows, lists["exact"], strict=True)]
        print(f"  {name:8s} recall@10 {np.mean(shared):.5f} of {len(users)} users")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/slmrec.yaml"))
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--users", type=int, default=USERS, help="for recall")
    given = parser.parse_args()
    if given.checkpoint is None:
        vectors, users = made_up(given.items, given.width)
    else:
        vectors, users = trained(given.checkpoint, given.recipe)
    print(f"{len(vectors):,} items of {vectors.shape[1]} numbers")
    with tempfile.TemporaryDirectory() as scratch:
        calls = heads(Path(scratch), vectors, given.top_k)
        found(calls, users[: given.users])
        for batch in (1, 32):
            compare(calls, users[:batch], given.rounds)


if __name__ == "__main__":
    main()
