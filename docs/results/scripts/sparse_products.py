"""What scripts/sparse_gpu.py multiplies: 2:4 weights, dense and compressed, and whether answers are right."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recommender.errors import InputError

Run = Callable[[], Any]
Matrices = dict[str, Any]
"""Name -> weight, float32 [out, in] on the CPU; half of every 4 inputs of a row are zero."""

WARM_UP = 3
ROUNDING = 4
"""Units of the last place, of the largest answer, by which a product may be off."""


def random_matrices(shapes: Mapping[str, tuple[int, int]]) -> Matrices:
    """Normal numbers of which 2 of every 4 inputs of a row, drawn at random, are zero."""
    import torch

    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, (outputs, inputs) in shapes.items():
        order = torch.rand(outputs, inputs // 4, 4, generator=draw).argsort(-1)
        weight = torch.randn(outputs, inputs, generator=draw)
        found[name] = weight.masked_fill((order < 2).reshape(outputs, inputs), 0)
    return found


def matrices_of(folder: Path) -> Matrices:
    """The first matrix of every shape whose 2:4 zeros a checkpoint notes.

    Raises InputError for a folder that is no checkpoint, has no such zeros, or not those that it notes.
    """
    from recommender.checkpoint import load_checkpoint, read_info
    from recommender.models.linears import body_linears
    from recommender.models.zeros import check_zeros
    from recommender.sparsity import noted

    note = noted(read_info(folder).about, str(folder))
    if note is None or note.pattern != "2:4":
        has = "no zeros" if note is None else f"{note.pattern} zeros"
        raise InputError(
            f"the checkpoint notes {has}, not 2:4 ones",
            where=str(folder),
            fix='give one that `recpress sparsify` made with --set pattern="2:4"',
        )
    model = load_checkpoint(folder)
    check_zeros(model, note, str(folder))
    linears = body_linears(model.bodies()["user"])
    found: dict[tuple[int, ...], tuple[str, Any]] = {}
    for name in note.matrices:
        matrix = linears[name].matrix().detach().float().contiguous()
        found.setdefault(tuple(matrix.shape), (name, matrix))
    return dict(found.values())


def compressed(weight: Any, backend: str) -> Any:
    """A 2:4 weight as torch's sparse tensor of a backend. Raises RuntimeError where it cannot be one."""
    import torch

    if not hasattr(torch.sparse, "SparseSemiStructuredTensor"):
        raise RuntimeError(f"torch {torch.__version__} has no semi-structured sparse tensors")
    with forced(backend == "cutlass"):
        found = torch.sparse.to_sparse_semi_structured(weight)
    if (got := str(getattr(type(found), "BACKEND", "no name"))) != backend:
        raise RuntimeError(f"torch {torch.__version__} took the backend {got}")
    return found


@contextmanager
def forced(cutlass: bool) -> Iterator[None]:
    """CUTLASS, or else cuSPARSELt, for weights that are compressed within the context."""
    from torch.sparse import SparseSemiStructuredTensor

    before = SparseSemiStructuredTensor._FORCE_CUTLASS
    SparseSemiStructuredTensor._FORCE_CUTLASS = cutlass
    try:
        yield
    finally:
        SparseSemiStructuredTensor._FORCE_CUTLASS = before


def exactness(given: Any, weight: Any, answer: Any) -> dict[str, Any]:
    """How far a product [rows, out] is from that of the same numbers in float64, over the largest of them;
    what rounding allows; and the share of answers that are the dense product's bit by bit.
    """
    import torch
    from torch.nn.functional import linear

    some = slice(0, 4096)  # rows: float64 is slow on a GPU
    true = given[some].double() @ weight.double().T
    largest = float(true.abs().max())
    error = float((answer[some].double() - true).abs().max()) / largest
    same = (linear(given, weight) == answer).double().mean()
    return {
        "error": error if math.isfinite(error) else None,
        "allowed": ROUNDING * torch.finfo(weight.dtype).eps,
        "same_as_dense": float(same),
    }


def is_exact(found: Mapping[str, Any]) -> bool:
    """Whether what `exactness` found is rounding; an error that is no number is not."""
    return found["error"] is not None and found["error"] <= found["allowed"]


def captured(run: Run, times: int) -> Run:
    """`times` runs as one CUDA graph. Raises RuntimeError where they cannot be captured."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    return graph.replay
