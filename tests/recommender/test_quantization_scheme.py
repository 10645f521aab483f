"""The scheme as data: what may stand in it, that it survives on disk, and that the grid is found again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from recommender.errors import InputError, StageError
from recommender.quantization_scheme import (
    INT4,
    INT8,
    SCALES_FILE,
    SCHEME_FILE,
    MatrixScheme,
    Quantization,
    QuantizationScheme,
    packed_bytes,
    read_quantization,
    read_scheme,
    unserved,
    whole_numbers,
    write_quantization,
)

DYNAMIC = MatrixScheme(weights="int8", activations="dynamic")
MIXED = QuantizationScheme(
    matrices={
        "0.a": MatrixScheme(weights="int4", group=32),
        "0.b": DYNAMIC,
        "1.a": MatrixScheme(weights="fp32"),
        "1.b": MatrixScheme(weights="int8", activations="static", input_range=(-2.0, 2.0)),
    },
    item_table="int8",
    method="gptq",
)


def scales(*names: str) -> dict[str, Any]:
    return {name: np.full((3, 1), 0.5, np.float32) for name in names}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "int8", "group": 32}, "group is for int4"),
        ({"weights": "int4", "group": 24}, "Input should be 16, 32"),
        ({"weights": "int4", "activations": "dynamic"}, "needs weights: int8"),
        ({"weights": "nf4", "narrow": True}, "narrow is for int8"),
        ({"weights": "int8", "input_range": (-1, 1)}, "for activations: static"),
        ({"weights": "int8", "activations": "static", "input_range": (-1, 2)}, "not symmetric"),
        ({"weights": "int8", "activations": "static", "input_range": (0, 0)}, "not symmetric"),
        ({"weights": "int3"}, "Input should be 'fp32', 'int8'"),
    ],
)
def test_what_no_runtime_could_hold_is_no_scheme(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MatrixScheme.model_validate(values)


def test_a_scheme_and_its_scales_survive_on_disk(tmp_path: Path) -> None:
    write_quantization(tmp_path, Quantization(MIXED, scales("0.a", "0.b", "1.b", "item_table")))
    found = read_quantization(tmp_path)
    assert found is not None and found.scheme == MIXED == read_scheme(tmp_path)
    assert set(found.scales) == {"0.a", "0.b", "1.b", "item_table"}
    assert found.scales["0.a"].tolist() == [[0.5]] * 3


def test_a_folder_without_a_scheme_is_not_quantized(tmp_path: Path) -> None:
    assert read_scheme(tmp_path) is None and read_quantization(tmp_path) is None


@pytest.mark.parametrize("lost", ["0.a", "item_table"])
def test_a_grid_without_its_scales_is_refused(lost: str, tmp_path: Path) -> None:
    kept = {"0.a", "0.b", "1.b", "item_table"} - {lost}
    write_quantization(tmp_path, Quantization(MIXED, scales(*kept)))
    with pytest.raises(InputError, match=f"no scales of {lost}"):
        read_quantization(tmp_path)
    (tmp_path / SCALES_FILE).write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="cannot read the scales"):
        read_quantization(tmp_path)


def test_a_broken_scheme_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / SCHEME_FILE).write_text(json.dumps({"matrices": {"0.a": {"weights": "int5"}}}))
    with pytest.raises(InputError, match=r"matrices\.0\.a\.weights"):
        read_scheme(tmp_path)


def test_the_summary_names_each_kind_once() -> None:
    assert MIXED.summary == "int4+int8-dynamic+int8-static"
    assert QuantizationScheme(matrices={}, item_table="int4").summary == "items-int4"


@pytest.mark.parametrize(
    ("variant", "summary", "message"),
    [
        ("quantized", "int8-dynamic", None),
        ("quantized", "int4+int8-dynamic", None),
        ("quantized", "mixed", None),
        ("qdq", "int8-static", None),
        ("qdq", "int4", None),
        ("qdq", "int4+int8-dynamic", "cannot hold int8-dynamic: variants that can: quantized"),
        ("qdq", "mixed", "variants that can: quantized"),
        ("quantized", "int8-static", "variants that can: qdq"),
        ("quantized", "nf4", "no variant can; fp32 and fast"),
        ("qdq", "int8-dynamic+int8-static", "no variant can"),
        ("quantized", "items-int8", None),
        ("qdq", "items-int8", "no matrix of the body is quantized"),
    ],
)
def test_what_a_variant_cannot_hold_is_told_with_those_that_can(
    variant: str, summary: str, message: str | None
) -> None:
    told = unserved(variant, summary)
    assert told is None if message is None else message in str(told)


@pytest.mark.parametrize("group", [None, 16])
def test_whole_numbers_are_found_again_to_the_bit(group: int | None) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(-8, 8, (5, 40)).astype(np.int8)
    steps = rng.uniform(1e-3, 1, (5, 1 if group is None else 3)).astype(np.float32)
    per_column = steps if group is None else np.repeat(steps, 16, axis=1)[:, :40]
    matrix = (numbers * per_column).astype(np.float32)
    assert np.array_equal(whole_numbers(matrix, steps, INT4, group, "w"), numbers)


def test_weights_that_left_the_grid_are_found_out() -> None:
    matrix = np.array([[0.5, 1.0, -1.5]], np.float32)
    grid = np.array([[0.5]], np.float32)
    whole_numbers(matrix, grid, INT8, None, "w")
    matrix[0, 1] = np.nextafter(matrix[0, 1], np.float32(2))
    with pytest.raises(StageError, match=r"0\.w does not lie on the grid"):
        whole_numbers(matrix, grid, INT8, None, "0.w")
    with pytest.raises(StageError, match="does not lie"):
        whole_numbers(np.array([[64.0]], np.float32), grid, INT8, None, "w")  # 128 steps


def test_packed_bytes_count_numbers_and_scales() -> None:
    assert packed_bytes(10, 64, MatrixScheme(weights="fp32")) == 2560
    assert packed_bytes(10, 64, MatrixScheme(weights="int8")) == 640 + 40
    assert packed_bytes(10, 64, MatrixScheme(weights="int4")) == 320 + 40
    assert packed_bytes(10, 64, MatrixScheme(weights="int4", group=32)) == 320 + 80
    assert packed_bytes(10, 64, MatrixScheme(weights="nf4")) == 320 + 10 + 4


def test_it_is_read_without_torch() -> None:
    code = (
        "import sys, recommender.quantization_scheme, recommender.checkpoint\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
