"""Bodies of tiny recommenders, and ways to run them."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import parser

from export.onnx import export_onnx
from export.runtime import overflows
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.models.interface import SequentialRecommender
from recommender.models.llm import LlmRecommender
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, left_padded, tiny_model


def scoring_graph(model: SequentialRecommender) -> ir.Model:
    """The canonical graph, ranking all items."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(model, path, top_k=model.n_items)
        return ir.from_proto(onnx.load(path))


@cache
def canonical(name: str) -> ir.Model:
    """The scoring graph of a tiny model or one of the two below; shared, so tests must not change it."""
    match name:
        case "grouped":
            return scoring_graph(grouped_queries())
        case "prompted":
            return scoring_graph(prompted())
    return scoring_graph(tiny_model(name))


def grouped_queries() -> SequentialRecommender:
    """Four query heads read two heads of keys and values."""
    config = LlmConfig(layers=2, hidden=32, heads=4, kv_heads=2, item_dim=8)
    return build_model(config, n_items=N_ITEMS, max_length=MAX_LENGTH, seed=3).eval()


def prompted() -> SequentialRecommender:
    """Two prompt tokens before the items and one behind, positions counted by content."""
    model = tiny_model("llama")
    assert isinstance(model, LlmRecommender)
    generator = torch.Generator().manual_seed(0)
    model.prefix = torch.randn(2, 16, generator=generator)
    model.suffix = torch.randn(1, 16, generator=generator)
    return model


def graph_of(text: str) -> ir.Model:
    """A model from ONNX's text form (the header is added)."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # as the runtime does
    if overflows():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def user_vectors(body: onnxruntime.InferenceSession, items: np.ndarray, table: np.ndarray) -> np.ndarray:
    feeds = {"items": items, "vectors": table[items]}
    user: np.ndarray = body.run(["user"], {value.name: feeds[value.name] for value in body.get_inputs()})[0]
    return user


def shapes() -> list[np.ndarray]:
    """Batch 1 and 3, every length, full, with padding, and one user without any item."""
    found = []
    for length in range(1, MAX_LENGTH + 1):
        for batch in (1, 3):
            found += [left_padded(batch, length, seed=length)]
        full = np.random.default_rng(length).integers(1, N_ITEMS + 1, (3, length))
        empty = full.copy()
        empty[1] = 0
        found += [full, empty]
    return found
