"""What runtimes make of activations: equal to onnxruntime's own operators, and transparent to gradients."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.quantization.simulation import activations, round_dynamic, round_static
from recommender.models.linears import Linear
from recommender.quantization_scheme import MatrixScheme


def given(rows: int = 5, width: int = 16) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def run(text: str, **feeds: np.ndarray) -> np.ndarray:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    session = onnxruntime.InferenceSession(model.SerializeToString())
    answer: np.ndarray = session.run(None, feeds)[0]
    return answer


def test_static_ranges_round_as_the_operators_of_onnx_do() -> None:
    text = """g (float[N, W] x, float s) => (float[N, W] y) {
        zero = Constant <value = int8 {0}> ()
        q = QuantizeLinear(x, s, zero)
        y = DequantizeLinear(q, s, zero)
    }"""
    x = 3 * given()
    wanted = run(text, x=x.numpy(), s=np.array(2.0 / 127, np.float32))
    assert np.allclose(round_static(x, 2.0).numpy(), wanted, atol=1e-6)
    assert round_static(x, 2.0).abs().max() < 2.02 < x.abs().max()


def test_dynamic_ranges_round_as_the_operator_of_onnx_does() -> None:
    text = """g (float[N, W] x) => (float[N, W] y) {
        q, s, z = DynamicQuantizeLinear(x)
        y = DequantizeLinear(q, s, z)
    }"""
    for row in (*given(), given()[0].abs(), -given()[1].abs(), torch.zeros(16)):
        wanted = run(text, x=row[None].numpy())
        assert np.allclose(round_dynamic(row[None]).numpy(), wanted, atol=1e-6)


def linear(scheme: MatrixScheme) -> tuple[nn.Linear, dict[str, Linear], dict[str, MatrixScheme]]:
    torch.manual_seed(0)
    module = nn.Linear(16, 4)
    return module, {"0.a": Linear("0.a", module, False)}, {"0.a": scheme}


@pytest.mark.parametrize(
    "scheme",
    [
        MatrixScheme(weights="int8", activations="dynamic"),
        MatrixScheme(weights="int8", activations="static", input_range=(-3, 3)),
    ],
)
def test_calls_see_rounded_inputs_while_it_is_open_and_gradients_pass(scheme: MatrixScheme) -> None:
    module, linears, schemes = linear(scheme)
    x = given().requires_grad_()
    plain = module(x)
    with activations(linears, schemes):
        rounded = module(x)
    assert not torch.equal(rounded, plain) and torch.allclose(rounded, plain, atol=0.1)
    assert torch.equal(module(x), plain)
    (gradient,) = torch.autograd.grad(rounded.sum(), x)
    assert torch.allclose(gradient, module.weight.sum(0).expand_as(x))


def test_weight_only_schemes_leave_inputs_alone() -> None:
    module, linears, schemes = linear(MatrixScheme(weights="int4", group=16))
    with activations(linears, schemes):
        assert torch.equal(module(given()), nn.functional.linear(given(), module.weight, module.bias))
