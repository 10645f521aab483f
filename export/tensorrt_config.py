"""How TensorRT engines are built: the section `tensorrt` of the export stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from export.tensorrt import Asked
from recommender.data.config import Section
from recommender.sparsity import Zeros

LARGEST_K = 3840
"""Of TensorRT's TopK."""
SEEN_STEP = 64
"""Rows that must not come back are given in multiples of so many places."""

Hardware = Literal["none", "ampere-plus", "same-compute-capability"]
Profile = tuple[int, int, int]


class TensorrtConfig(Section):
    """Of `variants: [tensorrt-fp16, ...]`; lengths are fixed in an engine, only the batch varies."""

    profiles: tuple[Profile, ...] = Field(
        ((1, 1, 1), (1, 16, 64)),
        min_length=1,
        description="batch sizes [smallest, tuned for, largest], one entry for each regime; larger batches "
        "are answered in several calls",
    )
    length: int | None = Field(
        None, ge=1, description="items of a history, shorter ones are padded; null: all that the model reads"
    )
    seen: int | None = Field(
        None,
        ge=1,
        description="places for rows that must not come back; null: the longest history of the data, rounded "
        f"up to a multiple of {SEEN_STEP}",
    )
    workspace_bytes: int | None = Field(
        None, ge=1, description="memory that the builder may use; null: all of the GPU's"
    )
    optimization_level: int = Field(3, ge=0, le=5, description="5 searches longest for fast kernels")
    timing_cache: Path | None = Field(
        None,
        description="folder of measured kernel times, a file per GPU, TensorRT and CUDA; null: tensorrt in "
        "the cache folder of recpress",
    )
    hardware: Hardware = Field(
        "none",
        description="other GPUs that the engine may run on: ampere-plus (compute capability 8.0 and later), "
        "same-compute-capability; costs speed",
    )
    version_compatible: bool = Field(
        False,
        description="runs in later TensorRT versions and drivers too; the engine then holds code that is run "
        "when it is opened, so open only your own",
    )
    refittable: bool = Field(
        False,
        description="`refresh-items` puts a new item table into the engine without building it anew, as long "
        "as the items fit",
    )
    spare_items: int = Field(0, ge=0, description="refittable: items that may be added before a new build")
    sparse: bool = Field(
        False, description="use kernels for 2:4 zeros; only for checkpoints of sparsify with pattern 2:4"
    )
    tf32: bool = Field(
        False, description="round inputs of float32 products to 10 bits: faster, and ranks otherwise"
    )
    around: Literal["fp32", "fp16", "bf16"] = Field(
        "fp16", description="tensorrt-int8, tensorrt-fp8: what everything but the quantized products is in"
    )
    cuda_graphs: bool = Field(True, description="capture each batch size once and replay it")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for profile in self.profiles:
            if not 1 <= profile[0] <= profile[1] <= profile[2]:
                raise ValueError(f"profile {list(profile)} is not [smallest, tuned for, largest], 1 or more")
        if gaps := uncovered(self.profiles):
            raise ValueError(f"no profile holds batches of {gaps[0]}: let them begin at 1 and meet")
        if self.spare_items and not self.refittable:
            raise ValueError("spare_items is for refittable: true")
        return self

    def problems(self, variants: Sequence[str], top_k: int, zeros: Zeros | None) -> list[tuple[str, str]]:
        """(field, what is wrong) of an export with these variants, of a checkpoint with these zeros."""
        engines = [name for name in variants if name.startswith("tensorrt-")]
        found = []
        if engines and top_k > LARGEST_K:
            found.append(("top_k", f"is {top_k}, but {engines[0]} answers {LARGEST_K} at most (its TopK)"))
        if engines and self.sparse and (zeros is None or zeros.pattern != "2:4"):
            has = "no zeros" if zeros is None else f"{zeros.pattern} zeros"
            found.append(
                ("tensorrt.sparse", f"wants a checkpoint of sparsify with pattern 2:4; this one has {has}")
            )
        return found

    def asked(self, cache: Path, refittable: tuple[str, ...]) -> Asked:
        """The same for the builder; `cache`: of recpress."""
        return Asked(
            profiles=self.profiles,
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
            timing_cache=self.timing_cache or cache / "tensorrt",
            hardware=self.hardware,
            version_compatible=self.version_compatible,
            refittable=refittable,
            sparse=self.sparse,
            tf32=self.tf32,
        )


def uncovered(profiles: Sequence[Profile]) -> list[int]:
    """Batch sizes up to the largest that no profile holds."""
    ends = sorted({size for low, _, high in profiles for size in (low, high + 1)} | {1})
    held = [size for size in ends if any(low <= size <= high for low, _, high in profiles)]
    return [size for size in ends[:-1] if size not in held]
