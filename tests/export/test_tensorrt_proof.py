"""What an engine computes in, as its inspector tells it, and which of its layers skip zeros.

TensorRT is a stand-in here (tests.fakes.tensorrt): nothing is said of what the real one does.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from export.tensorrt import ImpreciseError, prove, sparse_layers
from tests.export.engines import built

Scoring = dict[str, Path]

VERSIONS = ("10.15.1.29", "11.4.0.106")


def reads(*types: str, schema: str = "Format/Datatype") -> list[dict[str, str]]:
    """Inputs as the inspector tells of them; from TensorRT 11 on the format stands apart."""
    more = {"Format": "Row-major linear"} if schema == "Datatype" else {}
    return [{schema: each, **more} for each in types]


def test_layers_with_sparse_kernels_are_counted(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    model = onnx.load(scoring["fp32"])
    read = [node.input[1] for node in model.graph.node if node.op_type == "MatMul"]
    weights = [each for each in model.graph.initializer if each.name in read and each.dims[0] % 4 == 0]
    for each in weights[:3]:
        array = onnx.numpy_helper.to_array(each).copy()
        array[::4], array[1::4] = 0, 0
        each.CopyFrom(onnx.numpy_helper.from_array(array, each.name))
    onnx.save(model, tmp_path / "sparse.onnx")
    readers = sum(name in {each.name for each in weights[:3]} for name in read)
    told = [
        built(tmp_path / "sparse.onnx", tmp_path / "a.plan", sparse=sparse)["sparse_layers"]
        for sparse in (True, False)
    ]
    assert told == [readers, 0] and readers >= 3
    assert built(scoring["fp32"], tmp_path / "a.plan", sparse=True)["sparse_layers"] == 0
    fake_trt.FAIL.add("no tactics")
    assert built(scoring["fp32"], tmp_path / "a.plan", sparse=True)["sparse_layers"] is None


def test_sparse_tactics_are_known_by_their_names() -> None:
    names = ["sm80_xmma_sparse_gemm_f16f16", "cutlass_tensorop_SPMMA_64x64", "sm80_xmma_gemm_f16f16", ""]
    assert sparse_layers([{"TacticName": name} for name in names]) == 2
    assert sparse_layers([{"TacticName": ""}, {}]) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_an_engine_computes_in_is_proved(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, precision: str, version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fake_trt, "__version__", version)
    proof = built(scoring[precision], tmp_path / "a.plan", precision)["precision_proof"]
    assert proof["share"] >= {"fp32": 1.0}.get(precision, 0.75)
    assert proof["products"][precision] >= 5


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_fp32_weights_under_another_name_are_found_out(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, precision: str, version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fake_trt, "__version__", version)
    with pytest.raises(ImpreciseError, match=rf"{precision} was promised, but .* \d+ in fp32 \(0%"):
        built(scoring["fp32"], tmp_path / "a.plan", precision)
    assert not list(tmp_path.glob("*plan"))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ({"LayerType": "gemm", "Inputs": reads("Half")}, "fp16"),
        ({"LayerType": "CaskGemmMatrixMultiply", "Inputs": reads("Row major linear FP32")}, "fp32"),
        ({"LayerType": "fusion", "TacticName": "sm90_gemm_x", "Inputs": reads("Int8")}, "int8"),
        ({"LayerType": "gemm", "Inputs": reads("BFloat16", "Float")}, "bf16"),
        ({"LayerType": "gemm", "Inputs": reads("FP8")}, "fp8"),
        (
            {
                "LayerType": "gemm", "TacticName": "sm80_xmma_gemm_f16f16_f16f16",
                "Inputs": reads("N/A due to dynamic shapes"),
            },
            "fp16",
        ),
        ({"LayerType": "Convolution", "Weights": {"Type": "Half", "Count": 9}}, "fp16"),
        ({"LayerType": "conv", "Inputs": reads("Half")}, "fp16"),
        ({"LayerType": "gemm", "Inputs": reads("BFloat16", "Float", schema="Datatype")}, "bf16"),
        ({"LayerType": "gemm", "Inputs": reads("Int8", schema="Datatype")}, "int8"),
        ({"LayerType": "gemm", "Inputs": [{"Format": "Row major linear FP32"}]}, "fp32"),
        ({"LayerType": "kgen", "Name": "__myl_FcAddCast_myl0_5", "Inputs": reads("Half", "Half")}, "fp16"),
        ({"LayerType": "fusion", "Name": "__myl_MulFc_myl0_2", "Inputs": reads("FP8")}, "fp8"),
        (
            {
                "LayerType": "kgen", "Name": "node_of_linear_3",
                "TacticName": "__myl_Fc_0x3f1a6e0c_tensorop_32x64x32", "Inputs": reads("Half", "Float"),
            },
            "fp16",
        ),
        (
            {
                "LayerType": "kgen", "Name": "__myl_BmmAddCast_myl0_9",
                "TacticName": "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "Inputs": reads("N/A"),
            },
            "bf16",
        ),
        ({"LayerType": "gemm"}, "unknown"),
    ],
)  # fmt: skip
def test_the_inspector_is_read_in_all_its_spellings(layer: dict[str, Any], kind: str) -> None:
    if kind == "unknown":
        with pytest.raises(ImpreciseError, match="1 in unknown"):
            prove([layer], "fp16")
        return
    assert prove([layer, {"LayerType": "kgen"}], kind) == {"products": {kind: 1}, "share": 1.0, "layers": 2}


@pytest.mark.parametrize(
    "layer",
    [
        {"LayerType": "Reformat", "ParameterType": "DatatypeConversion", "Inputs": reads("Half")},
        {"LayerType": "kgen", "Name": "__myl_ConvertMul_myl0_1", "Inputs": reads("Half")},
        {"LayerType": "kgen", "Name": "__myl_ReplCastMulFcat_myl0_1", "Inputs": reads("Half")},
        {"LayerType": "kgen", "Name": "fc1.weight + MatMul_3_cast", "Inputs": reads("Half")},
    ],
)
def test_conversions_and_moves_are_no_products(layer: dict[str, Any]) -> None:
    products = {"LayerType": "gemm", "Inputs": reads("Float")}
    assert prove([products, layer], "fp32")["products"] == {"fp32": 1}


def test_an_engine_of_which_nothing_is_told_proves_nothing() -> None:
    with pytest.raises(ImpreciseError, match="none is told of"):
        prove([{"LayerType": "kgen"}], "fp32")
