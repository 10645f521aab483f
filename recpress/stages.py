"""The stages a recipe may name: where their config and their function live, and what they depend on.

The table holds names, not modules, so that nothing is imported before a recipe asks for it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from recommender.stage import Bound, Context, Outputs, StageConfig

    StageFunction = Callable[[StageConfig, Mapping[str, Bound], Context], Outputs]

LEARNING = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "numpy")
EXPORTING = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "optimum", "faiss-cpu", "numpy")
MEASURING = ("torch", "transformers", "onnxruntime", "numpy")


@dataclass(frozen=True)
class StageKind:
    """One line of the table."""

    summary: str  # one line for people
    config: str  # "module:Class"
    run: str  # "module:function"
    packages: tuple[str, ...]  # distributions whose version changes what the stage makes
    quick: bool = False  # so cheap that a plan tries it whole, for the stages that build on it
    measures: bool = False  # speed is part of the result, so the device is part of the fingerprint
    probed: bool = True  # a stage that trains: whether a plan may try a few of its steps
    alone: bool = True  # has a verb that runs it alone, around folders that exist already

    def config_class(self) -> "type[StageConfig]":
        """The config class, imported now."""
        return cast("type[StageConfig]", _load(self.config))

    def function(self) -> "StageFunction":
        """The stage's function, imported now."""
        return cast("StageFunction", _load(self.run))


StageTable = Mapping[str, StageKind]

STAGES: StageTable = {
    "train": StageKind(
        "train a recommender",
        "recommender.training.stage:TrainConfig",
        "recommender.training.stage:run",
        LEARNING,
    ),
    "import": StageKind(
        "bring in a model or item vectors from elsewhere",
        "recommender.incoming.stage:ImportConfig",
        "recommender.incoming.stage:run",
        ("torch", "transformers", "safetensors", "numpy", "polars"),
        quick=True,
    ),
    "adapt": StageKind(
        "carry a checkpoint over to a grown catalogue",
        "recommender.warm_start:AdaptConfig",
        "recommender.warm_start:run",
        LEARNING,
        quick=True,
    ),
    "prune-depth": StageKind(
        "remove whole blocks",
        "compress.prune_depth:PruneDepthConfig",
        "compress.prune_depth:run",
        LEARNING,
        quick=True,
    ),
    "sparsify": StageKind(
        "set single weights to zero",
        "compress.sparsify:SparsifyConfig",
        "compress.sparsify:run",
        LEARNING,
        quick=True,
    ),
    "prune-width": StageKind(
        "remove neurons, heads and channels",
        "compress.width:PruneWidthConfig",
        "compress.width:run",
        LEARNING,
        quick=True,
    ),
    "depth-profile": StageKind(
        "measure which blocks matter",
        "compress.depth_profile:DepthProfileConfig",
        "compress.depth_profile:run",
        LEARNING,
        probed=False,  # its searches take as long in a trial as in earnest
    ),
    "quantize": StageKind(
        "hold matrices and item vectors in fewer bits",
        "compress.quantize:QuantizeConfig",
        "compress.quantize:run",
        LEARNING,
        quick=True,
    ),
    "distill": StageKind(
        "train a student against its teacher",
        "compress.distill.stage:DistillConfig",
        "compress.distill.stage:run",
        LEARNING,
    ),
    "export": StageKind(
        "write a deployable artifact", "export.config:ExportConfig", "export.stage:run", EXPORTING
    ),
    "bench": StageKind(
        "measure quality and speed, write the report",
        "bench.config:BenchConfig",
        "bench.stage:run",
        MEASURING,
        measures=True,
    ),
    "gate": StageKind(
        "go on only where the report of a bench allows it",
        "bench.gate_stage:GateConfig",
        "bench.gate_stage:run",
        (),
        alone=False,  # `recpress gate RUN` reads the report of a run, without data and run folder
    ),
}


def _load(name: str) -> object:
    module, attribute = name.split(":")
    loaded: object = getattr(importlib.import_module(module), attribute)
    return loaded
