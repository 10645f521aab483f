"""Which matrices are held in how many bits: plain data that `quantize` writes and `export` reads.

A quantized checkpoint is a plain one whose weights lie on a grid: whole numbers times a scale per row, or
per `group` columns of a row. The scheme (`quantization.json`) says which grid, `quantization.safetensors`
holds its scales, since they cannot be told from the weights once error feedback or training has moved these.
Read without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError

from recommender.data.config import Section
from recommender.errors import InputError, StageError
from recommender.files import read_json, write_json

SCHEME_FILE, SCALES_FILE = "quantization.json", "quantization.safetensors"
ITEM_TABLE = "item_table"
"""Under which name the scales of the item table are stored; no matrix of a body has it."""

Weights = Literal["fp32", "int8", "int4", "nf4", "llm-int8"]
Activations = Literal["none", "dynamic", "static"]
TableBits = Literal["fp32", "int8", "int4"]
Group = Literal[16, 32, 64, 128, 256]
Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]


UNREAD = "of a file"
"""In place of a summary, where the scheme is in a file that only running will read."""
LEAVES_GRID = (
    "{name!r} is quantized ({scheme}), and this stage would leave its grid: quantize after it, or go on with "
    "distill (method: none trains alone), which stays on the grid"
)


class Levels(NamedTuple):
    """The whole numbers of a grid, both ends included."""

    low: int
    high: int


INT8, INT7, INT4 = Levels(-127, 127), Levels(-63, 63), Levels(-8, 7)
TABLE_LEVELS: Mapping[TableBits, Levels] = {"int8": INT8, "int4": INT4}
BITSANDBYTES = ("nf4", "llm-int8")
"""Formats of bitsandbytes: they have no scales here, and no graph can be made of them."""


class MatrixScheme(Section):
    """How one matrix is held, and what it is multiplied with."""

    weights: Weights = Field(description="fp32 leaves the matrix as it is")
    group: Group | None = Field(
        None, description="int4: columns of a row that share a scale; null: the whole row"
    )
    activations: Activations = Field(
        "none",
        description="int8: what is multiplied with it, in 8 bits as well: dynamic (range of each call) or "
        "static (`input_range`)",
    )
    narrow: bool = Field(
        False,
        description="int8: use 7 of the 8 bits, so that kernels without VNNI, which add two products in 16 "
        "bits, compute the same",
    )
    input_range: tuple[float, float] | None = Field(
        None, description="static: smallest and largest input, symmetric; null: measured"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.group is not None and self.weights != "int4":
            raise ValueError(f"group is for int4, not for {self.weights}")
        if self.activations != "none" and self.weights != "int8":
            raise ValueError(f"activations: {self.activations} needs weights: int8, not {self.weights}")
        if self.narrow and self.weights != "int8":
            raise ValueError(f"narrow is for int8, not for {self.weights}")
        if self.input_range is not None:
            low, high = self.input_range
            if self.activations != "static":
                raise ValueError("input_range is for activations: static")
            if not (0 < high < float("inf") and low == -high):
                raise ValueError(
                    f"input_range {low:g} to {high:g} is not symmetric around 0, as it has to be"
                )
        return self

    @property
    def kind(self) -> str:
        """In one word: fp32, int4, int8, int8-dynamic, int8-static, nf4, llm-int8."""
        return self.weights if self.activations == "none" else f"{self.weights}-{self.activations}"

    @property
    def levels(self) -> Levels | None:
        """The whole numbers of its grid; None where it has none of ours."""
        match self.weights:
            case "int8":
                return INT7 if self.narrow else INT8
            case "int4":
                return INT4
        return None


class QuantizationScheme(Section):
    """What is quantized in a model, and how its numbers were chosen."""

    matrices: dict[str, MatrixScheme] = Field(
        description="of the body's blocks, by name (`0.mlp.down_proj`); what is not named stays as it is"
    )
    item_table: TableBits = Field("fp32", description="the item vectors, a scale per item")
    method: Literal["rtn", "gptq"] = Field(
        "rtn", description="round to nearest, or GPTQ (arXiv 2210.17323): rounding errors are fed back"
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its matrices, each once; those that stay as they are do not count."""
        found = {matrix.kind for matrix in self.matrices.values()} - {"fp32"}
        return tuple(sorted(found))

    @property
    def summary(self) -> str:
        """Its kinds in one word: `int4+int8-dynamic`; `items-int8` where only the table is quantized."""
        return "+".join(self.kinds) or f"items-{self.item_table}"


SERVED: Mapping[str, tuple[str, ...]] = {
    "quantized": ("int4", "int8", "int8-dynamic"),
    "qdq": ("int4", "int8", "int8-static"),
    "tensorrt-int8": ("int8-static",),
}
"""Variant of an artifact -> kinds of matrices that it can hold."""


def unserved(variant: str, summary: str) -> str | None:
    """Why a variant cannot hold a scheme (by its summary), with those that can; None where it can.

    `mixed` stands for a scheme that is still to be chosen: int4, dynamic int8, or both.
    """
    if summary == UNREAD:
        return None
    kinds = _kinds(summary)
    if not kinds and variant == "quantized":
        return None  # it holds the item table
    if not kinds:
        return f"no matrix of the body is quantized ({summary}), so the variant {variant} has nothing to hold"
    lacking = [kind for kind in kinds if kind not in SERVED[variant]]
    if not lacking:
        return None
    return f"the variant {variant} cannot hold {', '.join(lacking)}: {holders(summary)}"


def holders(summary: str) -> str:
    """Which variants hold a scheme (by its summary) that quantizes matrices, in words."""
    if summary == UNREAD:
        return f"variants that hold a scheme, as its kinds allow: {', '.join(SERVED)}"
    kinds = set(_kinds(summary))
    fit = [name for name, served in SERVED.items() if kinds <= set(served)]
    return f"variants that can: {', '.join(fit)}" if fit else "no variant can; fp32 and fast hold its values"


def _kinds(summary: str) -> list[str]:
    if summary == "mixed":
        return ["int4", "int8-dynamic"]
    return [kind for kind in summary.split("+") if not kind.startswith("items-")]


@dataclass(frozen=True)
class Quantization:
    """A scheme with the scales of its grids."""

    scheme: QuantizationScheme
    scales: Mapping[str, Float32]  # matrix (and ITEM_TABLE) -> [rows, groups]


def whole_numbers(matrix: Float32, scales: Float32, levels: Levels, group: int | None, name: str) -> Int8:
    """The whole numbers [out, in] whose products with their scales [out, groups] ARE the matrix.

    Raises StageError where it does not lie on the grid: it was changed after it was quantized.
    """
    steps = expanded(scales, group, matrix.shape[1])
    numbers = np.clip(np.rint(matrix / steps), levels.low, levels.high)
    if not np.array_equal((numbers * steps).astype(np.float32), matrix):
        raise StageError(
            f"{name} does not lie on the grid that its checkpoint records",
            fix="quantize again: the weights were changed after the stage quantize",
        )
    stored: Int8 = numbers.astype(np.int8)
    return stored


def expanded(scales: Float32, group: int | None, width: int) -> Float32:
    """[out, groups] -> the scale of every column, [out, in] (or [out, 1] where a row has one)."""
    return scales if group is None else np.repeat(scales, group, axis=1)[:, :width]


def packed_bytes(rows: int, width: int, scheme: MatrixScheme) -> int:
    """Bytes of a matrix held as the scheme says, with its scales (float32; nf4: double quantization)."""
    size = rows * width
    match scheme.weights:
        case "fp32":
            return 4 * size
        case "int4":
            groups = 1 if scheme.group is None else -(-width // scheme.group)
            return -(-size // 2) + 4 * rows * groups
        case "nf4":
            blocks = -(-size // 64)
            return -(-size // 2) + blocks + 4 * -(-blocks // 256)
    return size + 4 * rows


def write_quantization(folder: Path, quantization: Quantization) -> None:
    """Write the scheme and its scales beside a checkpoint's config."""
    from safetensors.numpy import save_file

    write_json(folder / SCHEME_FILE, quantization.scheme.model_dump(mode="json"))
    scales = {name: np.ascontiguousarray(values) for name, values in quantization.scales.items()}
    save_file(scales, folder / SCALES_FILE)


def read_scheme(folder: Path) -> QuantizationScheme | None:
    """The scheme of a checkpoint; None for one that is not quantized. Raises InputError when it is broken."""
    file = folder / SCHEME_FILE
    return parsed_scheme(read_json(file), str(file)) if file.is_file() else None


def read_quantization(folder: Path) -> Quantization | None:
    """The scheme and scales of a checkpoint; None for one that is not quantized.

    Raises InputError when they are broken, or scales are missing.
    """
    from safetensors.numpy import load_file

    scheme = read_scheme(folder)
    if scheme is None:
        return None
    file = folder / SCALES_FILE
    try:
        scales = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the scales of the scheme: {error}", where=str(file)) from error
    wanted = {name for name, matrix in scheme.matrices.items() if matrix.levels is not None}
    wanted |= {ITEM_TABLE} if scheme.item_table != "fp32" else set()
    if missing := sorted(wanted - scales.keys()):
        raise InputError(f"no scales of {', '.join(missing[:3])}", where=str(file), fix="quantize again")
    return Quantization(scheme, scales)


def parsed_scheme(document: Any, where: str) -> QuantizationScheme:
    """A scheme from parsed JSON or YAML. Raises InputError naming the first thing that is wrong."""
    try:
        return QuantizationScheme.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"is no quantization scheme: {place}: {first['msg']}", where=where) from error
