"""Time the user-vector graph in its forms: eager torch, plain export, canonical body, fast body.

    python docs/results/scripts/body_speed.py --hidden 128 --layers 4 --heads 4
    python docs/results/scripts/body_speed.py --family sasrec --operators

One thread, rounds interleaved, weights random (speed does not follow them). Prints medians per call in ms of
CPU time of the calling thread (other processes do not count) and of wall time, and their ratios to the
canonical body. `--calls 1` changes the candidate after each call, so that none finds its weights in the
cache. `--operators` adds onnxruntime's own split of the fast body.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from export.body import cut_body
from export.fast_body import fast_body
from export.onnx import export_onnx
from recommender.models.build import build_model
from recommender.models.config import LlmConfig, ModelConfig, SasrecConfig
from recommender.models.interface import History, SequentialRecommender

Call = Callable[[np.ndarray, np.ndarray], object]


def open_session(model: ir.Model | Path, profile: str | None = None) -> onnxruntime.InferenceSession:
    """One thread; `profile` is the prefix of the file that onnxruntime writes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(source, options)


class AllPositions(torch.nn.Module):
    """What one writes without thinking of speed: all positions, then the last one."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """[B, L] -> [B, D]."""
        final = self.model.hidden(History(items)).final[:, -1]
        projected: torch.Tensor = self.model.project(final)
        return projected


def plain_export(model: SequentialRecommender, path: Path) -> Path:
    """torch.onnx.export with default settings, but for the dynamic axes."""
    items = torch.randint(1, model.n_items + 1, (3, 7))
    axes = {"items": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    torch.onnx.export(
        AllPositions(model).eval(), (items,), path, dynamo=True, dynamic_shapes=axes, verbose=False
    )
    return path


def candidates(model: SequentialRecommender, body: ir.Model, folder: Path) -> dict[str, Call]:
    """What is compared; each takes items [B, L] and their vectors [B, L, D]."""
    canonical, fast = open_session(body), open_session(fast_body(body, max_length=model.max_length).model)
    plain = open_session(plain_export(model, folder / "plain.onnx"))
    name = plain.get_inputs()[0].name

    def eager(items: np.ndarray, _: np.ndarray) -> object:
        with torch.inference_mode():
            return model.user_vector(History(torch.from_numpy(items)))

    return {
        "canonical body": lambda items, vectors: canonical.run(None, {"items": items, "vectors": vectors}),
        "fast body": lambda items, vectors: fast.run(None, {"items": items, "vectors": vectors}),
        "plain export": lambda items, _: plain.run(None, {name: items}),
        "eager torch": eager,
    }


def compare(calls: dict[str, Call], items: np.ndarray, vectors: np.ndarray, rounds: int, row: int) -> None:
    """Print the medians over all calls; in each round each candidate is called `row` times on end."""
    cpu: dict[str, list[float]] = defaultdict(list)
    wall: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 3):
        for name, call in calls.items():
            for _ in range(row):
                before, start = time.thread_time(), time.perf_counter()
                call(items, vectors)
                if turn >= 3:  # the first rounds warm up
                    cpu[name].append(time.thread_time() - before)
                    wall[name].append(time.perf_counter() - start)
    print(f"batch {items.shape[0]}, length {items.shape[1]}: {rounds} rounds of {row} calls")
    base = median(cpu["canonical body"]), median(wall["canonical body"])
    for name in calls:
        one, other = median(cpu[name]), median(wall[name])
        speed = f"{base[0] / one:5.2f}x {base[1] / other:5.2f}x"
        print(f"  {name:16s} cpu {1e3 * one:8.3f} ms  wall {1e3 * other:8.3f} ms   {speed}")


def operators(body: ir.Model, items: np.ndarray, vectors: np.ndarray, folder: Path) -> None:
    """Medians per node from onnxruntime's profile, summed by operator."""
    found = open_session(body, str(folder / "profile"))
    for _ in range(max(30, 6000 // items.size)):
        found.run(None, {"items": items, "vectors": vectors})
    events = json.loads(Path(found.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"])
    split: dict[str, float] = defaultdict(float)
    for (operator, _), durations in nodes.items():
        split[operator] += median(durations)
    total = sum(split.values())
    shares = sorted(split.items(), key=lambda entry: -entry[1])
    print("  operators: " + ", ".join(f"{name} {100 * us / total:.1f}%" for name, us in shares[:10]))


def main() -> None:
    """Build, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", default="llama")
    for name, value in (("hidden", 128), ("layers", 4), ("heads", 4), ("kv-heads", 0), ("max-length", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--shapes", default="1x50,1x9,32x50", help="batch x length, comma separated")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=10, help="calls of one candidate on end")
    parser.add_argument("--operators", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"layers": asked.layers, "hidden": asked.hidden, "heads": asked.heads}
    config: ModelConfig = SasrecConfig(**sizes)
    if asked.family != "sasrec":
        groups = {"kv_heads": asked.kv_heads or None, "item_dim": asked.hidden}
        config = LlmConfig(family=asked.family, **sizes, **groups)
    model = build_model(config, n_items=12_000, max_length=asked.max_length, seed=1).eval()
    table = model.item_table().detach().numpy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(model, folder / "fp32.onnx", top_k=20)
        body = cut_body(ir.from_proto(onnx.load(folder / "fp32.onnx")))
        calls = candidates(model, body, folder)
        for shape in asked.shapes.split(","):
            batch, length = (int(part) for part in shape.split("x"))
            items = np.random.default_rng(0).integers(1, 12_001, (batch, length))
            compare(calls, items, table[items], asked.rounds, asked.calls)
            if asked.operators:
                fast = fast_body(body, max_length=model.max_length).model
                operators(fast, items, table[items], folder)


if __name__ == "__main__":
    main()
