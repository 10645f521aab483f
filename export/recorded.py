"""Where the matrices of a recorded quantization scheme stand in a graph.

They are found by their values: exporters rename, transpose, cut and share weights, but keep every row of a
matrix to the bit. So a weight belongs to a matrix where each of its columns is a row of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.fast.surgery import constant, dims, maker
from export.passes import STANDARD_DOMAINS
from recommender.errors import StageError
from recommender.quantization_scheme import MatrixScheme, Quantization, whole_numbers

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender

Int8 = NDArray[np.int8]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Recorded:
    """A matrix as its checkpoint holds it."""

    name: str
    scheme: MatrixScheme
    numbers: Int8  # [out, in]
    scales: Float32  # [out, groups]
    places: Mapping[bytes, int]  # digest of a row -> its number (of the first of equal rows)


class Part(NamedTuple):
    """A weight of a graph: rows of a matrix, each a column of the product."""

    matrix: Recorded
    numbers: Int8  # [n, in]
    scales: Float32  # [n, groups]
    rows: frozenset[bytes]


class Product(NamedTuple):
    """A node x W (+ bias) whose W is a part of a recorded matrix."""

    node: ir.Node
    part: Part
    bias: ir.Value | None


def recorded(model: "SequentialRecommender", quantization: Quantization) -> dict[str, Recorded]:
    """The matrices of a scheme that have a grid, by name. Raises StageError where one lies on none."""
    from recommender.models.linears import quantizable

    linears = quantizable(model)
    found = {}
    for name, scheme in quantization.scheme.matrices.items():
        if scheme.levels is None:
            continue
        matrix: Float32 = np.ascontiguousarray(linears[name].matrix().cpu().numpy(), dtype=np.float32)
        scales = quantization.scales[name]
        numbers = whole_numbers(matrix, scales, scheme.levels, scheme.group, name)
        places: dict[bytes, int] = {}
        for place, row in enumerate(matrix):
            places.setdefault(_key(row), place)
        found[name] = Recorded(name, scheme, numbers, scales, places)
    return found


def products(model: ir.Model, matrices: Mapping[str, Recorded]) -> list[Product]:
    """All products with a recorded matrix, in the order of the graph."""
    return list(_products(model.graph, matrices))


def check_all_found(found: list[Product], matrices: Mapping[str, Recorded], variant: str) -> None:
    """Raise StageError naming the matrices of which a row is in none of the products."""
    seen: set[bytes] = set()
    for product in found:
        seen |= product.part.rows
    lost = [name for name, matrix in matrices.items() if not seen.issuperset(matrix.places)]
    if lost or not matrices:
        what = f"{len(lost)} of {len(matrices)} matrices of the scheme are not in the graph: "
        raise StageError(
            what + ", ".join(lost[:3]) if lost else "the scheme quantizes no matrix of the body",
            where="export.variants",
            fix=f"leave {variant} out",
        )


def left_in_float(body: Path, model: "SequentialRecommender") -> dict[str, int]:
    """The stored weights of float32 products in a graph: {matrix of the model: how many numbers}.

    One that is no part of such a matrix goes by its name in the graph.
    """
    from recommender.models.linears import quantizable

    known = {
        name: {_key(row) for row in np.asarray(linear.matrix().cpu().numpy(), np.float32)}
        for name, linear in quantizable(model).items()
    }
    parts: dict[frozenset[bytes], tuple[str, int]] = {}
    for node, rows in _stored(ir.load(body).graph):
        keys = frozenset(_key(row) for row in rows)
        fallback = str(getattr(node.inputs[1], "name", ""))
        name = next((each for each, places in known.items() if keys <= places), fallback)
        parts[keys] = (name, rows.size)
    found: dict[str, int] = {}
    for name, size in parts.values():
        found[name] = found.get(name, 0) + size
    return found


def _products(graph: ir.Graph, matrices: Mapping[str, Recorded]) -> Iterator[Product]:
    for node, rows in _stored(graph):
        if node.op_type == "Gemm" and not _plain(node):
            continue
        part = _part(rows, matrices)
        if part is not None:
            yield Product(node, part, node.inputs[2] if len(node.inputs) > 2 else None)


def _stored(graph: ir.Graph) -> Iterator[tuple[ir.Node, Float32]]:
    """Products with a stored float32 matrix, and this as rows [n, in], each a column of the product."""
    for node in list(graph):
        if node.domain not in STANDARD_DOMAINS or node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = _weight(node.inputs[1])
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            continue
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        yield node, np.ascontiguousarray(weight if transposed else weight.T)


def _plain(node: ir.Node) -> bool:
    """Whether a Gemm is x W + bias."""
    numbers = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    return numbers == (1.0, 1.0) and node.attributes.get_int("transA", 0) == 0


def _weight(value: ir.Value | None) -> "np.ndarray[Any, Any] | None":
    """A stored array, or one part of a Split of it (GPT-2 cuts its matrix of query, key and value)."""
    stored = constant(value)
    split = maker(value, "Split")
    if stored is not None or split is None or value is None:
        return stored
    whole, axis = constant(split.inputs[0]), split.attributes.get_int("axis", 0)
    shapes = [dims(each) for each in split.outputs]
    if whole is None or any(shape is None for shape in shapes):
        return None
    sizes = [int(shape[axis]) for shape in shapes if shape is not None]
    parts = np.split(whole, np.cumsum(sizes)[:-1], axis=axis)
    return parts[list(split.outputs).index(value)]


def _part(rows: Float32, matrices: Mapping[str, Recorded]) -> Part | None:
    """Rows [n, in] as a part of the matrix that holds them all; None where none does."""
    keys = [_key(row) for row in rows]
    for matrix in matrices.values():
        if matrix.numbers.shape[1] == rows.shape[1] and all(key in matrix.places for key in keys):
            places = [matrix.places[key] for key in keys]
            return Part(matrix, matrix.numbers[places], matrix.scales[places], frozenset(keys))
    return None


def _key(row: Float32) -> bytes:
    return hashlib.blake2b((row + np.float32(0)).tobytes(), digest_size=16).digest()  # -0 is 0
