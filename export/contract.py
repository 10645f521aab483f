"""The export contract in optimum's terms: inputs with their dynamic axes, outputs, dummy inputs, tolerance.

Both sides of the canonical ONNX are called items in our vocabulary, but ONNX values are named once, so the
output is `top_items`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from optimum.exporters.base import ExporterConfig
from optimum.utils.input_generators import DummyInputGenerator
from optimum.utils.normalized_config import NormalizedConfig

OPSET = 23
"""The only opset at which torch writes RMSNormalization, RotaryEmbedding and Attention as single nodes."""


@dataclass(frozen=True)
class ScoringSizes:
    """What the shapes of a scoring graph depend on."""

    n_items: int
    max_length: int
    top_k: int


class ScoringDummies(DummyInputGenerator):  # type: ignore[misc]
    """Left-padded histories and seen rows; two users or more, as torch.export takes 0 and 1 for constants."""

    SUPPORTED_INPUT_NAMES = ("items", "seen")

    def __init__(
        self,
        task: str,
        normalized_config: NormalizedConfig,
        *,
        batch_size: int = 3,
        sequence_length: int = 7,
        seen_length: int = 4,
        seed: int = 0,
        **_: Any,
    ) -> None:
        self.task = task
        self.n_items: int = normalized_config.n_items
        self.shapes = {
            "items": (max(batch_size, 2), min(sequence_length, normalized_config.max_length)),
            "seen": (max(batch_size, 2), max(seen_length, 2)),
        }
        self.seed = seed

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        """One input: rows 1..n_items, a growing number of zeros in front; torch tensor or numpy array."""
        batch, width = self.shapes[input_name]
        rng = np.random.default_rng(self.seed + len(input_name))
        rows = rng.integers(1, self.n_items + 1, (batch, width), dtype=np.int64)
        padding = np.arange(batch)[:, None] % width
        rows[np.arange(width)[None] < padding] = 0
        rows = rows.astype(int_dtype)
        return torch.from_numpy(rows) if framework == "pt" else rows


class ScoringExporterConfig(ExporterConfig):  # type: ignore[misc]
    """The contract of `export.graph.ScoringGraph`."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (ScoringDummies,)
    ATOL_FOR_VALIDATION = 1e-4
    """Per unit of the largest score of a list: what float32 may differ by between two runtimes."""

    def __init__(self, sizes: ScoringSizes) -> None:
        super().__init__(sizes, task="next-item", int_dtype="int64", float_dtype="fp32")
        self.sizes = sizes

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes of the inputs by name; a model that reads one item only has no dynamic length."""
        items = {0: "batch"} if self.sizes.max_length == 1 else {0: "batch", 1: "length"}
        return {"items": items, "seen": {0: "batch", 1: "seen"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes of the outputs by name; the second axis is k."""
        return {"top_items": {0: "batch"}, "scores": {0: "batch"}}

    def dynamic_shapes(self) -> dict[str, dict[int, torch.export.Dim]]:
        """`inputs` as torch.export wants them: one Dim per name; length ends at what the model reads."""
        longest = {"length": self.sizes.max_length}
        names = {name for axes in self.inputs.values() for name in axes.values()}
        dims = {name: torch.export.Dim(name, min=1, max=longest.get(name)) for name in names}
        return {name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in self.inputs.items()}
