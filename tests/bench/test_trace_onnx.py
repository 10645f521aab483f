"""Calls of artifacts that are taken apart."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bench.apart import TakenApart
from bench.trace_onnx import OnnxTrace, Ran, apart, placed, profiled, read_profile
from export.onnx import export_onnx
from recommender.cost import CostFormulas, work_of
from recommender.models.cost import cost_card
from recommender.scoring import HistoryArrays, ScorerRef, TopK
from tests.export.fixtures import N_ITEMS, left_padded, tiny_model

ROWS = N_ITEMS + 1


class Session:
    """A graph as a scorer, in as many runs per call as there are parts of the batch."""

    def __init__(self, path: Path, parts: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.parts = parts

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        for items in np.array_split(history.items, self.parts):
            rows, scores = self.session.run(None, {"items": items, "seen": items})
        return TopK(rows, scores)


def open_session(path: Path, **_: Any) -> Session:
    """How a `ScorerRef` opens it."""
    return Session(path)


Graph = Callable[[str], Path]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The exported graph of a tiny model, made once."""

    @functools.cache
    def exported(name: str) -> Path:
        path = tmp_path_factory.mktemp(name) / "graph.onnx"
        export_onnx(tiny_model(name), path, top_k=5)
        return path

    return exported


def full(length: int) -> HistoryArrays:
    """Four histories without padding."""
    return HistoryArrays(left_padded(4, length).clip(min=1))


def ran(op: str, columns: int = 16, ns: int = 10, inner: int = 16) -> Ran:
    return Ran(op, ns, ((4, inner),), ((4, columns),))


def parts_of(run: Sequence[Ran]) -> list[tuple[str, str]]:
    return [(each.op, part) for each, part in zip(run, placed(run, ROWS), strict=True)]


def test_a_body_with_its_norms_in_front() -> None:
    assert parts_of(
        [
            ran("Gather"), ran("MatMul"), ran("RMSNormalization"), ran("MatMul"), ran("Reshape"),
            ran("Attention"), ran("Add"), ran("SkipSimplifiedLayerNormalization"), ran("Gemm", 8),
            ran("Transpose"), ran("Gemm", ROWS, inner=8), ran("ScatterElements", ROWS), ran("TopK", 5),
        ]
    ) == [
        ("Gather", "embedding"), ("MatMul", "embedding"), ("RMSNormalization", "blocks"),
        ("MatMul", "blocks"), ("Reshape", "copies"), ("Attention", "blocks"), ("Add", "blocks"),
        ("SkipSimplifiedLayerNormalization", "head"), ("Gemm", "head"), ("Transpose", "copies"),
        ("Gemm", "scoring"), ("ScatterElements", "top_k"), ("TopK", "top_k"),
    ]  # fmt: skip


def test_a_body_with_its_norms_behind_begins_with_its_first_product() -> None:
    found = parts_of(
        [
            ran("Gather"), ran("Mul"), ran("MatMul"), ran("Attention"), ran("LayerNormalization"),
            ran("LayerNormalization"), ran("MatMul", ROWS), ran("TopK", 5),
        ]
    )  # fmt: skip
    assert [part for _, part in found] == [
        "embedding", "embedding", "blocks", "blocks", "blocks", "head", "scoring", "top_k",
    ]  # fmt: skip


def test_a_graph_without_a_body_has_neither_blocks_nor_head() -> None:
    found = parts_of([ran("Gather"), ran("CumSum"), ran("Gemm", ROWS), ran("TopK", 5)])
    assert [part for _, part in found] == ["embedding", "embedding", "scoring", "top_k"]


def test_a_scan_in_pieces_and_its_re_rank_are_told_apart() -> None:
    """No product covers the whole table: wide ones score, the narrow one that follows re-ranks."""
    found = parts_of(
        [
            ran("RMSNormalization"), ran("MatMul"), ran("RMSNormalization"), ran("DynamicQuantizeLinear"),
            ran("MatMulInteger", 32), ran("ReduceMax", 4), ran("MatMulInteger", 20), ran("TopK", 8),
            ran("MatMul", 8), ran("TopK", 5),
        ]
    )  # fmt: skip
    assert [part for _, part in found] == [
        "blocks", "blocks", "head", "head", "scoring", "top_k", "scoring", "top_k", "top_k", "top_k",
    ]  # fmt: skip


def test_a_wide_product_within_the_blocks_does_not_score() -> None:
    found = parts_of(
        [ran("RMSNormalization"), ran("MatMul", ROWS), ran("RMSNormalization"), ran("Gemm", ROWS)]
    )
    assert [part for _, part in found] == ["blocks", "blocks", "head", "scoring"]


def test_a_graph_that_only_makes_user_vectors_scores_nothing() -> None:
    found = parts_of([ran("Gather"), ran("RMSNormalization"), ran("MatMul"), ran("RMSNormalization")])
    assert [part for _, part in found] == ["embedding", "blocks", "blocks", "head"]


def test_flops_of_a_product_come_from_its_shapes() -> None:
    assert Ran("MatMul", 1, ((2, 3, 5),), ((2, 3, 7),)).flops == 2 * 2 * 3 * 7 * 5
    assert Ran("MatMul", 1, ((),), ()).flops == 0 == Ran("MatMul", 1, (), ((3,),)).flops


def test_runs_of_one_call_are_added() -> None:
    run = [ran("RMSNormalization", ns=3), ran("MatMul", ns=5), ran("LayerNormalization", ns=7)]
    found = apart([run, run], ROWS)
    assert found.parts == {"blocks": 16, "head": 14}
    assert (found.product_ns, found.product_flops) == (10, 2 * 2 * 4 * 16 * 16)


QUICK = ("llama", "sasrec-post")
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in ("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "sasrec", "sasrec-post")
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_products_of_the_blocks_are_those_of_the_cost_formulas(name: str, graph: Graph) -> None:
    """A real profile against the formulas: every linear map of the blocks is found, and nothing else."""
    path = graph(name)
    trace = OnnxTrace(lambda: Session(path))
    trace.call(full(9), 5)
    (found,) = trace.ended(ROWS) or ()
    blocks = work_of(CostFormulas.model_validate(cost_card(tiny_model(name))), [9] * 4, k=5)["blocks"]
    attention = 0 if name == "gemma2" else blocks.attention  # its soft cap takes the operator into products
    assert found.product_flops == blocks.products - attention
    assert {"embedding", "blocks", "head", "scoring", "top_k", "copies"} == set(found.parts)


def test_a_model_without_blocks_is_taken_apart_too(graph: Graph) -> None:
    path = graph("popularity")
    trace = OnnxTrace(lambda: Session(path))
    trace.call(HistoryArrays(left_padded(4, 9)), 5)
    (found,) = trace.ended(ROWS) or ()
    assert {"scoring", "top_k"} <= set(found.parts) and not {"blocks", "head"} & set(found.parts)


def test_each_call_has_its_own_runs_and_skipped_ones_are_left_out(graph: Graph) -> None:
    path = graph("sasrec-post")
    trace = OnnxTrace(lambda: Session(path, parts=2))
    for length in (3, 5, 7):
        trace.call(full(length), 5)
    assert [session.runs for session in trace.sessions] == [6]
    flops = [each.product_flops for each in trace.ended(ROWS, skipped=1) or ()]
    formulas = CostFormulas.model_validate(cost_card(tiny_model("sasrec-post")))
    works = [work_of(formulas, [length] * 4, k=5)["blocks"] for length in (5, 7)]
    assert flops == [work.products - work.attention for work in works]


def test_a_profile_that_misses_runs_is_not_used(graph: Graph) -> None:
    path = graph("popularity")
    trace = OnnxTrace(lambda: Session(path))
    trace.call(HistoryArrays(left_padded(2, 3)), 5)
    trace.sessions[0].runs += 1
    assert trace.ended(ROWS) is None


def test_a_profile_that_is_not_whole_is_told_of(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions are there: that is another matter than a scorer without any."""
    ref = ScorerRef("x", "artifact", "onnxruntime", graph("popularity"), f"{__name__}:open_session")
    child = TakenApart(ref, device="cpu", threads=1)
    batches = [HistoryArrays(left_padded(2, 3))]
    whole = child.split(batches, k=5, calls=1, seconds=1e-9, rows=ROWS)
    assert whole["parts"] and not whole["overflowed"]
    monkeypatch.setattr(OnnxTrace, "ended", lambda *_, **__: None)
    cut = child.split(batches, k=5, calls=1, seconds=1e-9, rows=ROWS)
    assert cut["parts"] is None and cut["overflowed"]


def test_sessions_are_plain_again_afterwards(tmp_path: Path, graph: Graph) -> None:
    before, made = onnxruntime.InferenceSession, list[Any]()
    with profiled(tmp_path, made):
        onnxruntime.InferenceSession(str(graph("popularity")))
        assert onnxruntime.InferenceSession is not before
    assert onnxruntime.InferenceSession is before and len(made) == 1


def test_operators_belong_to_the_run_that_they_lie_in(tmp_path: Path) -> None:
    def node(ts: int, op: str) -> dict[str, Any]:
        shape = [{"float": [2, 3]}]
        said = {"op_name": op, "input_type_shape": shape, "output_type_shape": shape}
        return {"cat": "Node", "name": f"{op}_kernel_time", "ts": ts, "dur": 2, "args": said}

    events = [
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50, "args": {}},
        {"cat": "Session", "name": "model_run", "ts": 10, "dur": 20, "args": {}},
        node(110, "C"), node(12, "A"), node(15, "B"), node(60, "between"), node(400, "after"),
        {"cat": "Node", "name": "A_fence_before", "ts": 11, "dur": 1, "args": {}},
    ]  # fmt: skip
    (tmp_path / "profile.json").write_text(json.dumps(events))
    runs = read_profile(tmp_path / "profile.json")
    assert [[each.op for each in run] for run in runs] == [["A", "B"], ["C"]]
    assert runs[0][0] == Ran("A", 2000, ((2, 3),), ((2, 3),))
