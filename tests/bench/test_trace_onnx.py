"""Calls of artifacts that are taken apart."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bench import trace_onnx
from bench.apart import TakenApart
from bench.trace_onnx import OnnxTrace, Ran, placed, profiled, read_profile
from export.onnx import export_onnx
from export.runtime import open_scorer
from recommender.cost import CostFormulas, work_of
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.cost import cost_card
from recommender.scoring import HistoryArrays, ScorerRef, TopK
from tests.export.fixtures import N_ITEMS, left_padded, make_artifact, tiny_model
from tests.recommender.fixtures import cyclic_histories, prepared_from

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


QUICK = ("llama", "sasrec-post")
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in ("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "sasrec", "sasrec-post")
]


def test_variants_of_one_small_catalogue_are_split_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item vectors of 16 beside 41 rows: the projection is wide for a product that does not score."""
    config = LlmConfig(family="llama", layers=1, hidden=16, heads=2, item_dim=16)
    model = build_model(config, n_items=N_ITEMS, max_length=12, seed=1).eval()
    prepared = prepared_from(tmp_path / "data", cyclic_histories(30, N_ITEMS, 12), N_ITEMS)
    make_artifact(model, tmp_path / "artifact", prepared, variants=["fast", "scan-int8"])
    seen: list[list[list[Ran]]] = []
    monkeypatch.setattr(trace_onnx, "apart", lambda runs, rows: seen.append(runs))
    for variant in ("fp32", "fast", "scan-int8"):
        trace = OnnxTrace(functools.partial(open_scorer, tmp_path / "artifact", variant=variant, threads=1))
        trace.call(full(9), 5)
        trace.ended(ROWS)
        runs = seen.pop()
        told = [
            pair
            for run, own in zip(runs, placed(runs, ROWS), strict=True)
            for pair in zip(run, own, strict=True)
        ]
        made = {
            part: {each.columns for each, own in told if own == part and each.is_product}
            for part in ("head", "scoring")
        }
        assert made == {"head": {16}, "scoring": {ROWS if variant == "fp32" else 128}}


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
