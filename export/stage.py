"""The `export` stage: a checkpoint becomes an artifact that ranks like it, or the stage fails.

With `format: triton` an artifact becomes a model repository (`export.triton.stage`).
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from export.ann import AnnConfig
from export.aot_build import AotConfig
from export.parity import ParityConfig
from export.tensorrt_config import TensorrtConfig
from export.triton.config import TritonConfig, repository_problems
from export.variants import CANONICAL, ENGINE, VariantName, may_be_default, scheme_problem
from recommender.errors import InputError
from recommender.quantization_scheme import read_quantization
from recommender.sparsity import noted
from recommender.stage import Bound, Context, Kind, OneSourceConfig, Outputs, Shape

if TYPE_CHECKING:
    from export.artifact import Origin
    from export.engines import EngineOrder
    from export.tensorrt import Device

CALIBRATION_USERS = 1024
"""Of whose histories (before the validation item) the ranges of tensorrt-fp8 are taken."""


class ExportConfig(OneSourceConfig):
    """Write an artifact (ONNX graphs, torch-free runtime) and prove that it ranks like its checkpoint.

    ```yaml
    - {stage: export, of: student, as: student-onnx, format: onnx}
    - {stage: export, of: student-onnx, as: student-triton, format: triton}
    ```
    """

    accepts: ClassVar[tuple[Kind, ...]] = ("checkpoint", "artifact")

    stage: Literal["export"] = "export"
    of: str = Field(description="name of the checkpoint to export; format triton: of the artifact to serve")
    as_: str = Field(alias="as", description="name of the artifact, or of the repository")
    format: Literal["onnx", "triton"] = Field(
        "onnx",
        description="onnx: an artifact; triton: a model repository for the Triton server, of an artifact",
    )
    top_k: int = Field(
        20, ge=1, description="length of the lists that the artifact answers; fixed in the graph"
    )
    opset: Literal[23] = Field(
        23, description="ONNX opset; 23 keeps norm, rotary embedding and attention whole"
    )
    variants: tuple[VariantName, ...] | None = Field(
        None,
        description="besides the canonical fp32: fast (a body made for onnxruntime), scan-int8 (8-bit scan "
        "of the items, exact scores of the best 50); one that is named is kept even where it is not faster; "
        "null: those that are faster here. By name only: scan-int4 (4-bit scan, for single requests on large "
        "catalogues). By name only, as they rank otherwise, and never the default: ann (an approximate index "
        "chooses what is scored), int8-body (8-bit body), quantized (the body as the checkpoint's scheme "
        "says), qdq (the same in standard operators, for TensorRT), fp16 and bf16 (half precision, for other "
        "runtimes), aot and aot-bf16 (compiled for this kind of machine, run by torch), tensorrt-fp32, "
        "-fp16, -bf16, -int8 (a checkpoint quantized int8-static), -fp8 (an engine for this machine's GPU)",
    )
    only: Literal["quantized"] | None = Field(
        None,
        description="an artifact of the variant quantized alone, its default: no float32 graph, and no "
        "float32 item table where the scheme holds that in few bits",
    )
    int8_users: int = Field(
        1,
        ge=1,
        description="int8-body, and quantized where its inputs are dynamic: most users in one call of the "
        "body. They share the scales of its activations, so lists depend on who shares a call; quality is "
        "measured in calls of this size",
    )
    ann: AnnConfig = Field(default_factory=AnnConfig, description="ann: its index and the gate about recall")
    aot: AotConfig = Field(default_factory=AotConfig, description="aot, aot-bf16: how they are compiled")
    tensorrt: TensorrtConfig = Field(
        default_factory=TensorrtConfig, description="tensorrt-...: how engines are built"
    )
    parity: ParityConfig = Field(default_factory=ParityConfig, description="the gate about ranking")
    triton: TritonConfig = Field(
        default_factory=TritonConfig, description="format triton: what is served, and how"
    )

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if self.only is not None and self.variants is not None:
            raise ValueError(f"only: {self.only} keeps no other variant: leave variants out")
        return self

    @property
    def wanted(self) -> tuple[VariantName, ...]:
        """Variants that have to pass, and are kept."""
        if self.only is not None:
            return (self.only,)
        return self.variants or ()

    @property
    def machine(self) -> dict[str, str]:
        """The GPU, driver and TensorRT, where engines are asked for and these are there."""
        device = None if ENGINE.keys().isdisjoint(self.variants or ()) else _gpu()
        return {} if device is None or isinstance(device, str) else device.machine()._asdict()

    def lacking(self) -> str | None:
        """That TensorRT or a GPU is missing, where engines are asked for."""
        device = None if ENGINE.keys().isdisjoint(self.variants or ()) else _gpu()
        return device if isinstance(device, str) else None

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """Variants that cannot hold the checkpoint's quantization scheme, what engines cannot be, and what
        does not go with the format.
        """
        if self.of not in known:
            return []
        if self.format == "triton":
            return list(repository_problems(self.of, self.triton, self.model_fields_set, known))
        if known[self.of].kind == "artifact":
            return [("of", f"{self.of!r} is an artifact already: export a checkpoint, or take format triton")]
        if "triton" in self.model_fields_set:
            return [("triton", "is of format triton")]
        shape = known[self.of]
        asked = [scheme_problem(name, shape.quantized, self.of) for name in self.wanted]
        place = "variants" if self.only is None else "only"
        found = [(place, wrong) for wrong in asked if wrong is not None]
        return found + self.tensorrt.problems(self.wanted, self.top_k, shape.sparsity)

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """An artifact with lists of one length, or a repository."""
        if self.format == "triton":
            return Shape("repository")
        return Shape("artifact", top_k=self.top_k)


def run(config: ExportConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Write `context.folder / "artifact"`, measure parity on histories of test users, pass the gate or fail.

    The canonical graph and every variant that is asked for by name have to pass; another one that does not,
    or is not faster here, is left out. The fastest of those that stay is the default (`only`: that one).
    Raises InputError for a checkpoint of another data set or without the zeros that it notes, a top_k beyond
    the catalogue, a variant that cannot hold its scheme or be compiled here, StageError when the model cannot
    be exported, GateError when a graph ranks differently.
    """
    if config.format == "triton":
        from export.triton.stage import run as write

        return write(config, inputs, context)
    import torch

    from export.artifact import keep_variants, write_artifact
    from export.gates import measure_variants
    from recommender.checkpoint import load_checkpoint, read_info
    from recommender.models.zeros import check_zeros

    if context.threads is not None:
        torch.set_num_threads(context.threads)
    path = inputs[config.of].path
    quantization, note = read_quantization(path), noted(read_info(path).about, str(path))
    scheme = None if quantization is None else quantization.scheme.summary
    zeros = None if note is None else note.planned
    for place, wrong in config.problems({config.of: Shape("checkpoint", quantized=scheme, sparsity=zeros)}):
        raise InputError(wrong, where=f"export.{place}")
    model = load_checkpoint(path, prepared=context.prepared)
    check_zeros(model, note, str(path))
    folder = context.folder / "artifact"
    context.progress("note", {"text": f"exporting {config.of} at opset {config.opset}"})
    facts = write_artifact(
        model,
        folder,
        prepared=context.prepared,
        origin=_origin(config, inputs[config.of], context),
        top_k=config.top_k,
        opset=config.opset,
        variants=config.variants if config.only is None else config.wanted,
        int8_users=config.int8_users,
        ann=config.ann,
        aot=config.aot,
        quantization=quantization,
        engines=_engines(config, context, model.max_length),
    )
    context.progress("note", {"text": f"{facts.nodes} nodes, {facts.size_bytes:,} bytes; measuring parity"})
    started = time.perf_counter()
    measured = measure_variants(model, folder, context, config.parity, named=config.wanted)
    keep, default = settle(measured, named=config.wanted, only=config.only)
    keep_variants(folder, keep, default, measured)
    context.progress("note", {"text": f"variants: {', '.join(keep)}; default: {default}"})
    return Outputs(
        metrics={
            "parity": measured[default]["parity"],
            "default_variant": default,
            "variants": measured,
            "nodes": facts.nodes,
            "operators": facts.operators,
            "size_bytes": facts.size_bytes,
            "artifact_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "export_seconds": facts.seconds,
            "parity_seconds": time.perf_counter() - started,
        }
    )


def _gpu() -> "Device | str":
    """The GPU that engines are built for, or why there is none."""
    from export import tensorrt

    try:
        return tensorrt.open_device()
    except tensorrt.MissingError as error:
        return str(error)


def _engines(config: ExportConfig, context: Context, max_length: int) -> "EngineOrder | None":
    """How the engines that are asked for are built; None where none is."""
    if ENGINE.keys().isdisjoint(config.variants or ()):
        return None
    from export.engines import EngineOrder
    from recommender.data.prepare import default_cache
    from recommender.evaluate import histories

    prepared, (users, ends) = context.prepared, context.split.targets("valid")
    drawn = np.random.default_rng(context.seed).permutation(len(users))[:CALIBRATION_USERS]
    return EngineOrder(
        config.tensorrt,
        default_cache(),
        longest=int(np.diff(prepared.offsets).max()),
        histories=histories(prepared, users[drawn], ends[drawn], max_length, mask_seen=False),
        progress=context.progress,
    )


def _origin(config: ExportConfig, parent: Bound, context: Context) -> "Origin":
    from export.artifact import Origin
    from recommender.checkpoint import read_info, split_as_json
    from recommender.files import folder_digest

    return Origin(
        name=config.as_,
        parents={parent.name: folder_digest(parent.path)},
        recipe=context.recipe,
        mask_seen=context.evaluation.mask_seen,
        command=context.command,
        seed=context.seed,
        split=split_as_json(context.evaluation.split),
        sparsity=read_info(parent.path).about.get("sparsity"),
    )


def settle(
    measured: Mapping[str, Mapping[str, Any]], *, named: Sequence[str], only: str | None = None
) -> tuple[list[str], str]:
    """(variants to keep, the default): the canonical one, those named, and those that are faster than it."""
    from export.speed import fastest, is_faster

    if only is not None:
        return [only], only
    ratios = {name: each["speedup"] for name, each in measured.items() if "speedup" in each}
    fast = {name for name in ratios if is_faster(ratios[name])}
    keep = [name for name in measured if name == CANONICAL or name in named or name in fast]
    may_serve = [name for name in keep if name in ratios and may_be_default(name)]
    return keep, fastest({name: ratios[name] for name in may_serve}, CANONICAL)
