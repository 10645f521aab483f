import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.passes import strip_default_attributes, widen_rotary_caches

HEAD = 4


def rotary_model(cache_batch: int | str = 1) -> onnx.ModelProto:
    """x [B, 2, L, 4] turned by caches [1, L, 2], as the fusion of broadcast cos and sin leaves them."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, "length", HEAD])
    caches = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [cache_batch, "length", HEAD // 2])
        for name in ("cos", "sin")
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 2, "length", HEAD])
    node = helper.make_node("RotaryEmbedding", ["x", "cos", "sin"], ["out"], interleaved=0, num_heads=2)
    graph = helper.make_graph([node], "rotary", [x, *caches], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, batch: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    angle = np.arange(3, dtype=np.float32)[None, :, None] * np.array([1.0, 0.1], np.float32)
    x = np.broadcast_to(rng.normal(size=(1, 2, 3, HEAD)), (batch, 2, 3, HEAD)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    out: np.ndarray = session.run(None, {"x": x, "cos": np.cos(angle), "sin": np.sin(angle)})[0]
    return out


def test_rotary_caches_of_one_user_serve_a_batch_only_after_the_pass() -> None:
    broken = rotary_model()
    alone = run(broken, 1)
    with pytest.raises(Exception, match="RotaryEmbedding"):
        run(broken, 5)
    model = ir.from_proto(broken)
    assert widen_rotary_caches(model.graph) == 2
    mended = ir.to_proto(model)
    onnx.checker.check_model(mended, full_check=True)
    np.testing.assert_allclose(run(mended, 5), np.repeat(alone, 5, axis=0), atol=1e-6)


def test_rotary_caches_that_have_the_batch_are_left_alone() -> None:
    model = ir.from_proto(rotary_model("batch"))
    assert widen_rotary_caches(model.graph) == 0
    assert len(model.graph) == 1


def test_only_attributes_at_their_default_are_stripped() -> None:
    model = ir.from_proto(rotary_model())
    assert strip_default_attributes(model.graph) == 1  # interleaved=0; num_heads has no such default
    assert list(next(iter(model.graph)).attributes) == ["num_heads"]
