"""How fast are the heads of an artifact on a catalogue of a million? Against MatMul + TopK in float32.

Vectors: `--clustered N` draws items around 2,000 centres of unequal size in 24 of 128 dimensions, with noise,
and users near items; `--checkpoint` takes the item table of a trained model, and its vectors of test users.
Through the machinery of `recpress bench`: pinned children, interleaved rounds, ratios of medians. Memory is
that of a child that has answered, less that of one with a table of a hundred items: `peak`, its largest
resident size so far, in which mapped pages of files count though any other process may share them and the
kernel may take them back, and `own`, what is its own now (RssAnon).

Run: python docs/results/scripts/million_items.py --clustered 1000000 [--threads 1] [--rounds 30]
     RECPRESS_DATA=DIR python docs/results/scripts/million_items.py --checkpoint FOLDER --recipe RECIPE
Appends one JSON row per batch size to docs/results/raw/million_items.jsonl.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.crew import TWIN, Crew, Limits
from bench.environment import environment
from bench.latency import latency, speedup
from bench.loads import Load
from bench.timing import time_cell
from export.catalogue import padded_rows
from export.head import write_head
from recommender.scoring import HistoryArrays, ScorerRef, TopK

RESULTS = Path(__file__).resolve().parents[1] / "raw" / "million_items.jsonl"
Float32 = NDArray[np.float32]
WIDTH, LATENT, CENTRES, K, SEEN, QUERIES = 128, 24, 2_000, 20, 9, 512
PLAIN, SMALL = "MatMul + TopK", "a hundred items"


def clustered(n_items: int, seed: int = 0) -> tuple[Float32, Float32]:
    """(item vectors [n, D], user vectors [QUERIES, D])."""
    rng = np.random.default_rng(seed)
    share = rng.pareto(1.2, CENTRES) + 0.1
    centres = rng.normal(size=(CENTRES, LATENT)).astype(np.float32)
    basis = rng.normal(size=(LATENT, WIDTH)).astype(np.float32) / np.sqrt(LATENT)
    own = rng.choice(CENTRES, n_items, p=share / share.sum())
    items = np.empty((n_items, WIDTH), np.float32)
    for start in range(0, n_items, 100_000):
        part = own[start : start + 100_000]
        spread = rng.normal(size=(len(part), LATENT)).astype(np.float32) * 0.4
        noise = rng.normal(size=(len(part), WIDTH)).astype(np.float32) * 0.2
        items[start : start + len(part)] = (centres[part] + spread) @ basis + noise
    near = items[rng.integers(0, n_items, QUERIES)]
    return items, (near + 0.3 * rng.normal(size=near.shape)).astype(np.float32)


def trained(checkpoint: Path, recipe: str) -> tuple[Float32, Float32]:
    """The same of a checkpoint, with users of the test part of the recipe's data."""
    from recommender.checkpoint import load_checkpoint
    from recommender.data.prepare import prepare
    from recommender.evaluate import histories
    from recommender.ranking import TorchScorer
    from recpress.recipe import load_recipe

    data = load_recipe(recipe).recipe.data
    prepared = prepare(data)
    model = load_checkpoint(checkpoint, prepared=prepared)
    users, positions = prepared.split("leave-one-out").targets("test")
    chosen = np.random.default_rng(0).choice(len(users), QUERIES, replace=False)
    given = histories(prepared, users[chosen], positions[chosen], model.max_length, mask_seen=True)
    vectors = TorchScorer(model).vectors(given).numpy()
    return model.item_table().detach().numpy()[1:], np.ascontiguousarray(vectors)


def write_plain(folder: Path, items: Float32) -> None:
    """The graph that one would write by hand: a product with the transposed table, mask, TopK."""
    n_items, width = items.shape
    np.ascontiguousarray(items.T).tofile(folder / "plain.bin")
    table = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=(width, n_items))
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="plain.bin")
    nodes = [
        helper.make_node("MatMul", ["user", "t"], ["raw"]),
        helper.make_node("Shape", ["seen"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["never"], value=numpy_helper.from_array(
            np.array([-np.inf], np.float32))),
        helper.make_node("ScatterElements", ["raw", "seen", "never"], ["masked"], axis=1),
        helper.make_node("TopK", ["masked", "k"], ["scores", "top_items"], axis=1),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "plain",
        [info("user", TensorProto.FLOAT, ["b", width]), info("seen", TensorProto.INT64, ["b", "s"])],
        [info("top_items", TensorProto.INT64, ["b", K]), info("scores", TensorProto.FLOAT, ["b", K])],
        [table, numpy_helper.from_array(np.array([K], np.int64), "k")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), folder / "plain.onnx")


def write_all(folder: Path, items: Float32, users: Float32) -> None:
    """Table, heads, plain graph, queries, and a small catalogue that shows what a child itself takes."""
    for place, vectors in ((folder, items), (folder / "small", items[:100])):
        place.mkdir(exist_ok=True)
        table = np.lib.format.open_memmap(
            place / "item_table.npy", "w+", np.float32, (padded_rows(len(vectors)), WIDTH)
        )
        table[1 : len(vectors) + 1] = vectors
        table.flush()
        for kind in ("exact", "int8"):
            write_head(place, f"{kind}.onnx", kind=kind, n_items=len(vectors), top_k=K)
        np.save(place / "queries.npy", users)
    write_plain(folder, items)


class Head:
    """A head as a scorer: the newest item of a "history" is the number of a query."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.queries = np.load(path.parent / "queries.npy")
        names = [value.name for value in self.session.get_inputs()]
        table = np.load(path.parent / "item_table.npy", mmap_mode="r").view(np.ndarray)
        self.reads = {"table": table} if "table" in names else {}

    def answer(self, users: Float32, seen: Any) -> Any:
        """(rows, scores) of user vectors."""
        given = {"user": users, "seen": seen} | self.reads
        return self.session.run(("top_items", "scores"), given)

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best of each query."""
        rows, scores = self.answer(self.queries[history.items[:, -1]], history.seen)
        return TopK(rows[:, :k], scores[:, :k])


def open_head(path: Path, *, threads: int, **_: Any) -> Head:
    """What a child of the bench calls."""
    return Head(path, threads)


def load_of(batch: int, n_items: int, rounds: int) -> Load:
    """Batches of queries, each with a few rows that were seen."""
    rng = np.random.default_rng(batch)
    batches = [
        HistoryArrays(rng.integers(0, QUERIES, (batch, 1)), rng.integers(1, n_items, (batch, SEEN)))
        for _ in range(rounds)
    ]
    return Load("full", batch, batches)


def recalls(folder: Path, items: Float32, users: Float32) -> dict[str, float]:
    """Recall@10 and agreement of the first item of each head against the whole product in float64."""
    nothing = np.zeros((len(users), 1), np.int64)
    best = np.empty((len(users), 10), np.int64)
    for number, user in enumerate(users):
        scores = items @ user
        chosen = np.argpartition(-scores, 40)[:40]
        exact = items[chosen].astype(np.float64) @ user.astype(np.float64)
        best[number] = chosen[np.argsort(-exact)][:10] + 1
    found = {}
    for kind in ("exact", "int8"):
        head = Head(folder / f"{kind}.onnx", 2)
        rows = np.concatenate([
            head.answer(users[i : i + 32], nothing[i : i + 32])[0]
            for i in range(0, len(users), 32)
        ])[:, :10]  # fmt: skip
        found[f"{kind} recall@10"] = float(
            np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, best, strict=True)])
        )
        found[f"{kind} first"] = float((rows[:, 0] == best[:, 0]).mean())
    return found


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clustered", type=int)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if options.checkpoint is None:
        items, users = clustered(options.clustered)
    else:
        items, users = trained(options.checkpoint, options.recipe)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_all(folder, items, users)
        common = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", "docs/results/scripts/million_items.py", *sys.argv[1:]]),
            "vectors": "clustered" if options.checkpoint is None else "trained",
            "items": len(items), "width": items.shape[1], "table_bytes": items.nbytes,
            "threads": options.threads, **recalls(folder, items, users),
        }  # fmt: skip
        for row in measured(folder, len(items), options):
            row = common | row | {"environment": environment().model_dump(exclude_none=True)}
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row))


def measured(folder: Path, n_items: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per batch size."""
    files = {PLAIN: "plain.onnx", "exact": "exact.onnx", "int8": "int8.onnx", SMALL: "small/int8.onnx"}
    before, rows = os.getloadavg()[0], []
    with Crew(Limits(opening=300, call=60), options.threads) as crew:
        for name, file in [*files.items(), (PLAIN + TWIN, files[PLAIN])]:
            ref = ScorerRef(name, "artifact", "onnxruntime", folder / file, "million_items:open_head")
            crew.open(name, ref, "cpu")
        for batch in (1, 32):
            # the small one gets the same queries, and rows that it has
            load = load_of(batch, 100, options.rounds)
            timed = time_cell(
                crew, load, PLAIN, k=10, rounds=options.rounds, warmup=3, seed=0, budget_seconds=300
            )
            if crew.failures:
                raise SystemExit("; ".join(f"{name} {fault.text}" for name, fault in crew.failures.items()))
            row: dict[str, Any] = {"batch": batch, "rounds": options.rounds, "load_average_before": before}
            for name in ("exact", "int8"):
                found = speedup(timed, name, PLAIN, draws=10_000, seed=0)
                assert found.ci95 is not None
                row[name] = {
                    "p50_ms": latency(timed, name).p50_ms,
                    "time_ratio": 1 / found.ratio,
                    "ci95": [1 / found.ci95[1], 1 / found.ci95[0]],
                    "aa_floor": found.aa_floor,
                }
            assert timed.twin is not None
            twin = 1e3 * float(np.median(timed.twin))
            row[PLAIN] = {"p50_ms": latency(timed, PLAIN).p50_ms, "twin_p50_ms": twin}
            peaks = crew.each(lambda child: child.peak(seconds=60)[0])
            own = crew.each(lambda child: own_bytes(child.pid))
            row["memory_bytes"] = {
                name: {"peak": peaks[name] - peaks[SMALL], "own": own[name] - own[SMALL]}
                for name in (PLAIN, "exact", "int8")
            }
            rows.append(row)
    return rows


def own_bytes(pid: int) -> int:
    """Resident memory of a process that no file lies behind."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
