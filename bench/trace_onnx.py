"""Where the time of an artifact's call goes: onnxruntime's own profile, its operators grouped by place.

A graph names no blocks, so places are told from what its operators are and from their order: see `placed`.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from bench.stopwatch import replaced
from recommender.scoring import HistoryArrays, Scorer, whole_blocks

MOVES = frozenset(
    {
        "Cast", "Concat", "Expand", "Flatten", "Identity", "MemcpyFromHost", "MemcpyToHost", "Reshape",
        "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that only bring data into another place or form."""

SCANS = 4
"""A product over more than 1/4 of the table scores items, where none of the call is over the whole of it."""


class Ran(NamedTuple):
    """One operator of one run."""

    op: str
    ns: int
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]

    @property
    def is_product(self) -> bool:
        """Matrix times matrix, of whatever type."""
        return "MatMul" in self.op or "Gemm" in self.op

    @property
    def is_norm(self) -> bool:
        """Layer or RMS norm, fused with a sum or not."""
        return self.op.endswith("Normalization")

    @property
    def columns(self) -> int:
        """Of what it makes."""
        return self.outputs[0][-1] if self.outputs and self.outputs[0] else 0

    @property
    def flops(self) -> float:
        """Of a product: 2 per multiply-add."""
        if not self.inputs or not self.inputs[0] or not self.outputs:
            return 0.0
        made = 1
        for size in self.outputs[0]:
            made *= size
        return 2.0 * made * self.inputs[0][-1]


@dataclass
class Apart:
    """One call: nanoseconds by part, and of the products in the blocks their time and FLOPs."""

    parts: Counter[str]
    product_ns: int = 0
    product_flops: float = 0.0


def placed(runs: Sequence[Sequence[Ran]], rows: int) -> list[list[str]]:
    """The part that each operator of each run of a call belongs to; `rows` of the item table, row 0 included.

    Scoring is the product (or products) over the item table; what follows it picks the best: top_k. The last
    norm before it begins the head, the first one the blocks; where attention comes before any norm, as in a
    model with its norms behind, the first product begins them. What comes before is the embedding. A graph
    without norms and attention has neither blocks nor head; where it scores what another run of the call has
    made, all before its product is scoring, too. Moves of data before the scoring are copies.
    """
    scans = _scans(runs, rows)
    apart_from_body = any(scans) and not all(scans)
    return [_placed(run, own, apart_from_body) for run, own in zip(runs, scans, strict=True)]


def _placed(run: Sequence[Ran], scans: Sequence[int], apart_from_body: bool) -> list[str]:
    end = scans[0] if scans else len(run)
    first, head = _body(run[:end])
    before = "scoring" if scans and apart_from_body and first == end else "embedding"
    parts = []
    for index, each in enumerate(run):
        if index >= end:
            parts.append("scoring" if index in scans else "top_k")
        elif each.op in MOVES:
            parts.append("copies")
        else:
            parts.append(before if index < first else "blocks" if index < head else "head")
    return parts


def _scans(runs: Sequence[Sequence[Ran]], rows: int) -> list[list[int]]:
    """Places of the products over the item table in every run: those that a TopK follows.

    One as wide as the table, as it is, stored in whole blocks, or without row 0; where no run of the call has
    any, those that are wide (a scan in pieces).
    """
    products = [_that_are_picked_from(run) for run in runs]
    for width in (rows, whole_blocks(rows), rows - 1):
        exact = [
            [i for i in own if run[i].columns == width][-1:] for run, own in zip(runs, products, strict=True)
        ]
        if any(exact):
            return exact
    return [
        [i for i in own if run[i].columns * SCANS > rows] for run, own in zip(runs, products, strict=True)
    ]


def _that_are_picked_from(run: Sequence[Ran]) -> list[int]:
    """Products between the last norm of a run and its last TopK."""
    after = max((i for i, each in enumerate(run) if each.is_norm), default=-1)
    until = max((i for i, each in enumerate(run) if each.op == "TopK"), default=-1)
    return [i for i in range(after + 1, until) if run[i].is_product]


def _body(run: Sequence[Ran]) -> tuple[int, int]:
    """Where the blocks begin and where the head does."""
    norms = [i for i, each in enumerate(run) if each.is_norm]
    attentions = [i for i, each in enumerate(run) if "Attention" in each.op]
    if not norms and not attentions:
        return len(run), len(run)
    first = norms[0] if norms else len(run)
    if attentions and attentions[0] < first:
        first = next((i for i, each in enumerate(run) if each.is_product), attentions[0])
    return first, norms[-1] if norms else len(run)


def apart(runs: Sequence[Sequence[Ran]], rows: int) -> Apart:
    """The runs of one call together."""
    found = Apart(Counter())
    for run, parts in zip(runs, placed(runs, rows), strict=True):
        for each, part in zip(run, parts, strict=True):
            found.parts[part] += each.ns
            if part == "blocks" and each.is_product:
                found.product_ns += each.ns
                found.product_flops += each.flops
    return found


class OnnxTrace:
    """Calls of an artifact whose sessions write profiles; nothing is known before `ended`."""

    def __init__(self, opener: Callable[[], Scorer]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.sessions: list[Any] = []
        with profiled(Path(self._folder.name), self.sessions):
            self.scorer = opener()
        self.marks: list[list[int]] = []  # runs of each session up to the end of each call

    def call(self, batch: HistoryArrays, k: int) -> None:
        """Make one call that is taken apart later."""
        self.scorer.top_k(batch, k)
        self.marks.append([session.runs for session in self.sessions])

    def ended(self, rows: int, *, skipped: int = 0) -> list[Apart] | None:
        """Every call but the first `skipped`, taken apart; None where a profile misses some of the runs."""
        with self._folder:
            profiles = [read_profile(Path(session.end_profiling())) for session in self.sessions]
        if any(len(runs) != session.runs for runs, session in zip(profiles, self.sessions, strict=True)):
            return None  # onnxruntime stops after a million events
        found, begins = [], [0] * len(profiles)
        for ends in self.marks:
            runs = [
                run for runs, a, b in zip(profiles, begins, ends, strict=True) for run in runs[a:b]
            ]  # fmt: skip
            found.append(apart(runs, rows))
            begins = ends
        return found[skipped:]


@contextmanager
def profiled(folder: Path, made: list[Any]) -> Iterator[None]:
    """Sessions that are opened meanwhile write a profile into `folder`, count their runs, and join `made`."""

    class Profiled(onnxruntime.InferenceSession):  # type: ignore[misc]
        runs = 0

        def __init__(self, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
            options = onnxruntime.SessionOptions() if sess_options is None else sess_options
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / f"session{len(made)}")
            super().__init__(model, options, *args, **kwargs)
            made.append(self)

        def run(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().run(*args, **kwargs)
            self.runs += 1
            return answer

        def run_with_iobinding(self, *args: Any, **kwargs: Any) -> None:
            super().run_with_iobinding(*args, **kwargs)
            self.runs += 1

    with replaced(onnxruntime, "InferenceSession", Profiled):
        yield


def read_profile(path: Path) -> list[list[Ran]]:
    """The operators of every run in a profile, in the order in which they ran."""
    events: list[Mapping[str, Any]] = json.loads(path.read_text())
    whole = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")),
        key=lambda e: e["ts"],
    )
    runs: list[list[Ran]] = [[] for _ in whole]
    number = 0
    for event in nodes:
        while number < len(whole) and event["ts"] > whole[number][1]:
            number += 1
        if number < len(whole) and event["ts"] >= whole[number][0]:
            runs[number].append(_ran(event))
    return runs


def _ran(event: Mapping[str, Any]) -> Ran:
    said = event["args"]
    inputs, outputs = (
        tuple(tuple(shape) for entry in said.get(key) or () for shape in entry.values())
        for key in ("input_type_shape", "output_type_shape")
    )
    return Ran(str(said.get("op_name", "")), int(event["dur"]) * 1000, inputs, outputs)
