"""What an engineer gets by hand: the model as it is, or `torch.onnx.export` and onnxruntime as they are.

From histories padded to the full length to the k best: every block computes every position. The exporter
chooses its own opset, the session its own optimizations. The yardsticks of scripts/deploy_cpu.py.
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
from recommender.ranking import TorchScorer
from recommender.scoring import HistoryArrays, Int64, TopK

K = 20
CALL = 32  # users in one call of the padded model


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


def padded(history: HistoryArrays, max_length: int) -> tuple[Int64, Int64]:
    """Histories [B, max_length] and what was seen [B, S], as both yardsticks take them."""
    items = history.items[:, -max_length:]
    seen = np.zeros((len(items), 1), np.int64) if history.seen is None else history.seen
    return np.pad(items, ((0, 0), (max_length - items.shape[1], 0))), seen


class PaddedScorer:
    """The model in eager mode: histories are padded to the full length, `CALL` users are one call."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_checkpoint(checkpoint)
        self.plain = Plain(self.model).eval()

    @torch.inference_mode()
    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best of each history."""
        items, seen = (torch.from_numpy(part) for part in padded(history, self.model.max_length))
        calls = zip(items.split(CALL), seen.split(CALL), strict=True)
        rows, scores = zip(*(self.plain(*call) for call in calls), strict=True)
        return TopK(torch.cat(rows)[:, :k].numpy(), torch.cat(scores)[:, :k].numpy())


def open_padded(path: Path, *, threads: int, **_: Any) -> PaddedScorer:
    """What a child of the bench calls: `path` is the checkpoint."""
    torch.set_num_threads(threads)
    return PaddedScorer(path)


def open_half(path: Path, *, threads: int, **_: Any) -> TorchScorer:
    """This project's scorer in eager mode with all of the model in bfloat16: `path` is the checkpoint."""
    torch.set_num_threads(threads)
    return TorchScorer(load_checkpoint(path).to(torch.bfloat16))


class PlainScorer:
    """The exported graph: histories are padded to the full length, a batch is one call."""

    def __init__(self, file: Path, max_length: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options)
        self.max_length = max_length

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best of each history."""
        items, seen = padded(history, self.max_length)
        rows, scores = self.session.run(None, {"items": items, "seen": seen})
        return TopK(rows[:, :k], scores[:, :k])


def open_plain(path: Path, *, threads: int, **_: Any) -> PlainScorer:
    """What a child of the bench calls: `path` is the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        export_plain(path, Path(folder) / "plain.onnx")
        return PlainScorer(Path(folder) / "plain.onnx", load_checkpoint(path).max_length, threads)
