"""How far an answer may be off: as far as rounding goes, and no further."""

import runpy
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from export.triton.config import TritonConfig
from export.triton.golden import TOLERANCES, tolerance
from export.triton.models import served_model
from tests.export.fixtures import MAX_LENGTH, N_ITEMS
from tests.export.triton.test_repository import COMPILED, ENGINE, ENTRY

SCRIPTS = Path(__file__).parents[3] / "docs" / "results" / "scripts"
TF32 = ENGINE["engine"] | {"flags": {"tf32": True}}


@pytest.mark.parametrize(
    ("entry", "kind", "allowed"),
    [
        (ENTRY, "cpu", "fp32"),
        (ENTRY, "gpu", "fp16"),  # onnxruntime computes in TF32 there
        (ENTRY | {"precision": "fp16"}, "cpu", "fp16"),
        (ENTRY | {"precision": "bf16"}, "gpu", "bf16"),
        (COMPILED | {"device": "cuda"}, "cpu", "fp32"),
        (ENGINE | {"precision": "fp32"}, "cpu", "fp32"),
        (ENGINE | {"precision": "fp32", "engine": TF32}, "cpu", "fp16"),
        (ENGINE | {"precision": "bf16", "engine": TF32}, "cpu", "bf16"),
        (ENGINE | {"precision": "int8"}, "cpu", "int8"),
    ],
)
def test_a_model_may_be_off_as_far_as_its_precision_says(
    entry: dict[str, Any], kind: str, allowed: str
) -> None:
    asked = TritonConfig.model_validate({"kind": kind})
    assert tolerance(served_model("shop", entry, Path("artifact"), asked)) == TOLERANCES[allowed]


def test_rounding_is_allowed_with_room_and_the_next_coarser_type_is_not(exported: Path) -> None:
    script = runpy.run_path(str(SCRIPTS / "rounding.py"))
    canonical = ir.load(exported / "catalogue-1/fp32.onnx")
    exact, given = script["lists_of"](canonical), script["requests"](N_ITEMS, MAX_LENGTH, 40)
    off = {
        name: script["differences"](exact, script["lists_of"](model), given).max()
        for name, model in script["rounded"](canonical, N_ITEMS, MAX_LENGTH)
    }
    assert all(0 < off[name] < TOLERANCES[name] / 1.5 for name in ("fp16", "bf16"))
    assert TOLERANCES["bf16"] < off["fp8"] < TOLERANCES["fp8"]
    assert 0 < off["tf32"] < TOLERANCES["fp16"] / 1.5 and off["bf16"] > TOLERANCES["fp16"]
    assert script["differences"](exact, exact, given).max() == 0
