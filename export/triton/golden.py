"""Golden requests: made-up histories, what each model answers, and how near an answer must be."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.runtime import Artifact, ArtifactError
from export.triton.models import Served
from recommender.errors import StageError

TOLERANCES = {"fp32": 1e-3, "fp16": 4e-3, "bf16": 3e-2, "int8": 8e-2, "fp8": 0.12}
"""By precision, per unit of the largest score: how far an answer may be off elsewhere. Of fp16 and bf16 eight
times what rounding one number does; what scores were measured to be off stands in docs/triton.md.
"""

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


class Request(NamedTuple):
    """One padded request."""

    items: Int64  # [1, L], zeros in front
    seen: Int64  # [1, S], zeros behind


class Answer(NamedTuple):
    """One list; rows without a finite score count as none."""

    rows: Int64  # [k]
    scores: Float32  # [k]


def padded(rows: Sequence[int], mask: bool, items: int, seen: int | None, step: int) -> Request:
    """A history of rows, oldest first, in the shapes that clients send: the newest `items` of it are read.

    `seen`: places for rows to mask; None: as many as they need, rounded up to a multiple of `step`.
    """
    newest = np.asarray(rows, np.int64)[-items:]
    masked = np.unique(np.asarray(rows, np.int64)) if mask else np.zeros(0, np.int64)
    places = seen or step * max(1, -(-len(masked) // step))
    masked = masked[:places]
    given = Request(np.zeros((1, items), np.int64), np.zeros((1, places), np.int64))
    given.items[0, items - len(newest) :] = newest
    given.seen[0, : len(masked)] = masked
    return given


def golden_requests(
    folder: Artifact, models: Sequence[Served], histories: Sequence[Sequence[str]], step: int
) -> dict[str, Any]:
    """Histories, and what each model answers; where it does not run here, what the canonical graph does.

    `folder`: the artifact, opened with any variant. Raises StageError where a graph cannot answer.
    """
    mask = bool(folder.manifest["mask_seen"])
    rows = [[folder.rows[item] for item in history] for history in histories]
    document: dict[str, Any] = {
        "mask_seen": mask, "histories": [list(each) for each in histories], "rows": rows, "answers": {},
    }  # fmt: skip
    for model in models:
        answering = _opened(folder, model)
        lists = []
        for each in rows:
            given = padded(each, mask, model.items, model.seen, step)
            try:
                best = answering.run(*given)
            except ArtifactError as error:
                raise StageError(f"{model.variant} cannot answer: {error}", where="export") from error
            lists.append(_document(Answer(best.items[0], best.scores[0]), folder))
        document["answers"][model.name] = {
            "answered_by": answering.variant, "tolerance": tolerance(model), "lists": lists,
        }  # fmt: skip
    return document


def tolerance(model: Served) -> float:
    """Per unit of the largest score: how far a server's answers may be off.

    TF32 counts as fp16, whose mantissa it has: onnxruntime on a GPU computes products of float32 in it unless
    it is told otherwise, and engines where they were asked to.
    """
    tf32 = model.gpu and model.graph.suffix == ".onnx"
    tf32 = tf32 or model.built.get("engine", {}).get("flags", {}).get("tf32", False)
    return max(TOLERANCES[model.precision], TOLERANCES["fp16"] if tf32 else 0.0)


def _opened(folder: Artifact, model: Served) -> Artifact:
    """The variant of a model; the canonical graph in the place of one that does not run here."""
    try:
        return Artifact(folder.folder, variant=model.variant, threads=1, verify=False)
    except ArtifactError:
        if model.graph.suffix == ".onnx" and model.variant == "fp32":
            raise
        return Artifact(folder.folder, variant="fp32", threads=1, verify=False)


def _document(answer: Answer, folder: Artifact) -> dict[str, Any]:
    found = np.isfinite(answer.scores)
    rows = answer.rows[found].tolist()
    return {
        "rows": rows,
        "items": [folder.item_ids[row - 1] for row in rows],
        "scores": [float(score) for score in answer.scores[found]],
    }


def difference(expected: Mapping[str, Any], answer: Answer) -> float:
    """How far an answer is off, per unit of the largest score: by place, and by item. inf: other lengths.

    An item that is not in the expected list is held against its last score: it may only have been as good.
    """
    wanted = np.asarray(expected["scores"], np.float64)
    found = np.isfinite(answer.scores)
    got = answer.scores[found].astype(np.float64)
    if len(wanted) != len(got):
        return float("inf")
    if not len(wanted):
        return 0.0
    by_row = dict(zip(expected["rows"], expected["scores"], strict=True))
    known = np.array([by_row.get(row, wanted[-1]) for row in answer.rows[found].tolist()])
    scale = float(np.abs(wanted).max()) or 1.0
    return float(max(np.abs(got - wanted).max(), np.abs(got - known).max())) / scale
