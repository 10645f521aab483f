"""The `export` stage: a checkpoint becomes an artifact that ranks like it, or the stage fails."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from export.parity import ParityConfig, gate
from recommender.stage import Bound, Context, Outputs, Shape, StageConfig

if TYPE_CHECKING:
    from export.artifact import Origin
    from recommender.models.interface import SequentialRecommender


class ExportConfig(StageConfig):
    """Write an artifact (canonical ONNX, torch-free runtime) and prove that it ranks like its checkpoint.

    ```yaml
    - {stage: export, of: student, as: student-onnx, format: onnx}
    ```
    """

    stage: Literal["export"] = "export"
    of: str = Field(description="name of the checkpoint to export")
    as_: str = Field(alias="as", description="name of the artifact")
    format: Literal["onnx"] = Field("onnx", description="what the graph is written as")
    top_k: int = Field(
        20, ge=1, description="length of the lists that the artifact answers; fixed in the graph"
    )
    opset: Literal[23] = Field(
        23, description="ONNX opset; 23 keeps norm, rotary embedding and attention whole"
    )
    parity: ParityConfig = Field(default_factory=ParityConfig, description="the gate about ranking")

    @property
    def consumes(self) -> tuple[str, ...]:
        """The checkpoint."""
        return (self.of,)

    @property
    def produces(self) -> str:
        """The artifact."""
        return self.as_

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """An artifact with lists of one length."""
        return Shape("artifact", top_k=self.top_k)


def run(config: ExportConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Write `context.folder / "artifact"`, measure parity on histories of test users, pass the gate or fail.

    Raises InputError for a checkpoint of another data set or a top_k beyond the catalogue, StageError when
    the model cannot be exported, GateError when the graph ranks differently.
    """
    import torch

    from export.artifact import write_artifact
    from recommender.checkpoint import load_checkpoint

    if context.threads is not None:
        torch.set_num_threads(context.threads)
    model = load_checkpoint(inputs[config.of].path, prepared=context.prepared)
    folder = context.folder / "artifact"
    context.progress("note", {"text": f"exporting {config.of} at opset {config.opset}"})
    facts = write_artifact(
        model,
        folder,
        prepared=context.prepared,
        origin=_origin(config, inputs[config.of], context),
        top_k=config.top_k,
        opset=config.opset,
    )
    context.progress("note", {"text": f"{facts.nodes} nodes, {facts.size_bytes:,} bytes; measuring parity"})
    started = time.perf_counter()
    parity = _parity(config, model, folder, context)
    return Outputs(
        metrics={
            "parity": parity,
            "nodes": facts.nodes,
            "operators": facts.operators,
            "size_bytes": facts.size_bytes,
            "artifact_bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "export_seconds": facts.seconds,
            "parity_seconds": time.perf_counter() - started,
        }
    )


def _origin(config: ExportConfig, parent: Bound, context: Context) -> "Origin":
    from export.artifact import Origin
    from recommender.checkpoint import split_as_json
    from recommender.files import folder_digest

    return Origin(
        name=config.as_,
        parents={parent.name: folder_digest(parent.path)},
        recipe=context.recipe,
        mask_seen=context.evaluation.mask_seen,
        command=context.command,
        seed=context.seed,
        split=split_as_json(context.evaluation.split),
    )


def _parity(
    config: ExportConfig, model: "SequentialRecommender", folder: Path, context: Context
) -> dict[str, Any]:
    """Measure and gate."""
    from export.measure import measure_parity
    from export.runtime import Artifact

    parity = measure_parity(
        model,
        Artifact(folder, threads=context.threads),
        context.prepared,
        context.split,
        config.parity,
        mask_seen=context.evaluation.mask_seen,
        seed=context.seed,
    )
    gate(parity, config.parity, where=f"export.parity (worst at {parity['worst']})")
    return parity
