"""The options of the stage `export`; a recipe is read with no more."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from export.ann import AnnConfig
from export.aot_build import AotConfig
from export.parity import ParityConfig
from export.tensorrt_config import TensorrtConfig
from export.triton.config import TritonConfig, repository_problems
from export.variants import ENGINE, VariantName, scheme_problem
from recommender.stage import Kind, OneSourceConfig, Shape

if TYPE_CHECKING:
    from export.tensorrt import Device


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


def _gpu() -> "Device | str":
    """The GPU that engines are built for, or why there is none."""
    from export import tensorrt

    try:
        return tensorrt.open_device()
    except tensorrt.MissingError as error:
        return str(error)
