from pathlib import Path

import onnx_ir as ir
import torch

from export.contract import ScoringExporterConfig, ScoringSizes
from export.graph import ScoringGraph
from recommender.models.interface import SequentialRecommender
from tests.export.bodies import graph_of
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, tiny_model
from tests.traces import SharedTraces

CONTRACT = ScoringExporterConfig(ScoringSizes(N_ITEMS, MAX_LENGTH, 3))


class Traced:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: ScoringGraph, contract: ScoringExporterConfig, opset: int) -> ir.Model:
        self.calls += 1
        return graph_of(f"g (float[N] x) => (float[N] y) {{ y = Mul <k = {self.calls}> (x, x) }}")


def scoring(model: SequentialRecommender) -> ScoringGraph:
    return ScoringGraph(model, 3).eval()


def test_equal_models_are_traced_once_and_each_gets_a_graph_of_its_own(tmp_path: Path) -> None:
    trace = Traced()
    first, second = (SharedTraces(trace, tmp_path)(scoring(tiny_model("sasrec")), CONTRACT, 23) for _ in "ab")
    assert trace.calls == 1 and first is not second
    assert [node.op_type for node in second.graph] == ["Mul"]


def test_another_weight_size_opset_or_family_is_traced_anew(tmp_path: Path) -> None:
    trace = Traced()
    shared = SharedTraces(trace, tmp_path)
    other = tiny_model("sasrec")
    with torch.no_grad():
        next(other.parameters()).view(-1)[5] += 1e-6
    shared(scoring(tiny_model("sasrec")), CONTRACT, 23)
    shared(scoring(other), CONTRACT, 23)
    shared(scoring(tiny_model("sasrec")), ScoringExporterConfig(ScoringSizes(N_ITEMS, MAX_LENGTH, 4)), 23)
    shared(scoring(tiny_model("sasrec")), CONTRACT, 24)
    shared(scoring(tiny_model("sasrec-pre")), CONTRACT, 23)
    assert trace.calls == 5


def test_what_cannot_be_compared_is_traced_each_time(tmp_path: Path) -> None:
    trace = Traced()
    shared = SharedTraces(trace, tmp_path)
    for _ in range(2):
        model = tiny_model("sasrec")
        model.register_forward_hook(lambda *_: None)
        shared(scoring(model), CONTRACT, 23)
    assert trace.calls == 2
