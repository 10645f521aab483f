"""What an engineer gets who exports by hand: `torch.onnx.export` and onnxruntime, both as they are.

One graph from histories padded to the full length to the k best: every block computes every position, the
exporter chooses its own opset, the session its own optimizations. The yardstick of scripts/deploy_cpu.py.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from recommender.checkpoint import load_checkpoint
from recommender.models.interface import History, SequentialRecommender
from recommender.scoring import HistoryArrays, Int64, TopK

K = 20


class Plain(nn.Module):
    """Histories [B, max_length], seen [B, S] -> the K best rows and their scores."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """All positions of all blocks, then the last one."""
        states = self.model.hidden(History(items)).final[:, -1]
        scores = self.model.project(states) @ self.model.item_table().T
        scores = scores.scatter(1, seen, float("-inf"))
        scores[:, 0] = float("-inf")
        best, rows = torch.topk(scores, K)
        return rows, best


def export_plain(checkpoint: Path, file: Path) -> None:
    """Export with the defaults; batch and the number of seen rows are dynamic, as serving needs."""
    model = load_checkpoint(checkpoint)
    items = torch.ones(2, model.max_length, dtype=torch.long)
    batch, seen = torch.export.Dim("batch"), torch.export.Dim("seen")
    torch.onnx.export(
        Plain(model).eval(),
        (items, torch.ones(2, 3, dtype=torch.long)),
        file,
        dynamo=True,
        dynamic_shapes={"items": {0: batch}, "seen": {0: batch, 1: seen}},
        input_names=["items", "seen"],
        output_names=["rows", "scores"],
        verbose=False,
    )


class PlainScorer:
    """The exported graph: histories are padded to the full length, a batch is one call."""

    def __init__(self, file: Path, max_length: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options)
        self.max_length = max_length

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best of each history."""
        items = history.items[:, -self.max_length :]
        padded: Int64 = np.pad(items, ((0, 0), (self.max_length - items.shape[1], 0)))
        seen = np.zeros((len(items), 1), np.int64) if history.seen is None else history.seen
        rows, scores = self.session.run(None, {"items": padded, "seen": seen})
        return TopK(rows[:, :k], scores[:, :k])


def open_plain(path: Path, *, threads: int, **_: Any) -> PlainScorer:
    """What a child of the bench calls: `path` is the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        export_plain(path, Path(folder) / "plain.onnx")
        return PlainScorer(Path(folder) / "plain.onnx", load_checkpoint(path).max_length, threads)
