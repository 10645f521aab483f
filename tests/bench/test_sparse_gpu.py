"""The command that times 2:4 products on a GPU: its cells, its gates, and a whole run on the processor."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recommender.checkpoint import save_checkpoint
from recommender.errors import InputError
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.models.linears import body_linears
from recommender.models.zeros import is_2_to_4, measure
from recommender.sparsity import Sparsity
from tests.bench.fakes import tiny_log
from tests.bench.test_deploy_gpu import NEVER, SCRIPTS, imports

COMMON = {"device": "cpu", "gpu": "Some CPU", "torch": "2", "tiny": True, "weights": "random"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("sparse_gpu")


@pytest.fixture
def products(command: ModuleType) -> ModuleType:
    return importlib.import_module("sparse_products")


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(command: ModuleType, monkeypatch: pytest.MonkeyPatch, file: Path, *more: str) -> list[dict[str, Any]]:
    given = ["--out", str(file), "--device", "cpu", "--tiny", "--rounds", "6", *more]
    monkeypatch.setattr(sys, "argv", ["sparse_gpu.py", *given])
    command.main()
    return rows_in(file)


def test_every_cell_is_there_once_and_captures_come_last(command: ModuleType) -> None:
    every = command.cells(list(command.SHAPES), tiny=False)
    assert len(every) == len(set(every)) == 3 * 8 * 2 * 3 * 2
    assert {each.users * each.positions for each in every} == {50, 1600, 12800, 51200, 1, 32, 256, 1024}
    assert [each.launch for each in every] == ["eager"] * 144 + ["graph"] * 144


def test_random_weights_have_two_zeros_in_every_four(products: ModuleType) -> None:
    found = products.random_matrices({"a": (64, 32), "b": (16, 64)})
    for weight in found.values():
        assert is_2_to_4(weight) and (weight == 0).float().mean() == 0.5
        assert len({tuple(each) for each in (weight.reshape(-1, 4) == 0).tolist()}) == 6  # all that there are


def test_on_a_processor_sparse_ways_are_rows_with_a_reason_and_nothing_is_measured_twice(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    monkeypatch.setattr(command, "PRECISIONS", ("bf16",))
    first = run(command, monkeypatch, file)
    assert len(first) == 2 * 4 * 3 * 2
    for row in first:
        measured = row["way"] == "dense" and row["launch"] == "eager"
        assert row.get("skipped") == (None if measured else "needs CUDA, and the device is cpu")
        if measured:
            assert row["rows"] == row["users"] * row["positions"] and row["rounds"] == 6
            assert row["us_ci95"][0] <= row["us"] <= row["us_ci95"][1] and row["speedup"] > 0
            assert row["same_as_dense"] == 1 and row["error"] <= row["allowed"]
    assert run(command, monkeypatch, file) == first
    assert len(run(command, monkeypatch, file, "--retry")) == 2 * len(first) - 8  # all but the measured ones


def test_rows_of_another_machine_or_of_other_weights_do_not_count(
    command: ModuleType, tmp_path: Path
) -> None:
    cell = command.cells(["up"], tiny=True)[0]
    for name, other in (("gpu", "Another"), ("torch", "3"), ("weights", "a 1"), ("tiny", False)):
        file = tmp_path / f"{name}.jsonl"
        command.Rows(file, {**COMMON, name: other}).add(cell, skipped="why")
        assert command.Rows(file, COMMON).done == set()
        assert command.Rows(file, {**COMMON, name: other}).done == {cell}


@pytest.fixture
def as_on_a_gpu(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the processor measure `cutlass` with a compression of the test's: the one row that comes of it."""

    def measured(compression: Any, file: Path) -> dict[str, Any]:
        monkeypatch.setattr(command, "SPARSE", ())
        monkeypatch.setattr(command, "compressed", compression)
        rows = command.Rows(file, COMMON)
        matrices = command.random_matrices({"up": (24, 16)})
        command.Measuring("cpu", rows, matrices, 6, 1e-4).cell(
            command.Cell("up", 4, 3, "bf16", "cutlass", "eager")
        )
        (row,) = rows_in(file)
        return dict(row)

    return measured


def test_a_way_that_gives_the_dense_numbers_is_timed(as_on_a_gpu: Any, tmp_path: Path) -> None:
    row = as_on_a_gpu(lambda weight, backend: weight.clone(), tmp_path / "rows.jsonl")
    assert "skipped" not in row and row["us"] > 0 and row["way"] == "cutlass"


@pytest.mark.parametrize("wrong", [1.1, float("nan"), 0.0])
def test_a_way_that_gives_other_numbers_is_not_timed(wrong: float, as_on_a_gpu: Any, tmp_path: Path) -> None:
    row = as_on_a_gpu(lambda weight, backend: weight * wrong, tmp_path / "rows.jsonl")
    assert row["skipped"] == "its answers are not those of the dense product" and "us" not in row
    assert row["error"] is None or row["error"] > row["allowed"]


def test_what_torch_says_of_a_way_that_it_lacks_is_the_reason(as_on_a_gpu: Any, tmp_path: Path) -> None:
    def lacking(weight: Any, backend: str) -> Any:
        raise RuntimeError(f"{backend} is not\n supported")

    assert as_on_a_gpu(lacking, tmp_path / "rows.jsonl")["skipped"] == "cutlass is not supported"


@pytest.mark.parametrize("backend", ["cusparselt", "cutlass"])
def test_the_backend_is_chosen_for_one_compression_only(
    backend: str, products: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = torch.sparse.SparseSemiStructuredTensor
    monkeypatch.setattr(kind, "_FORCE_CUTLASS", None)
    chosen = []

    def fake(weight: torch.Tensor) -> torch.Tensor:
        chosen.append(kind._FORCE_CUTLASS)
        return weight

    weight = torch.ones(4, 4)
    with pytest.raises(RuntimeError):  # of torch itself: no CUDA here
        products.compressed(weight, backend)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", fake)
    with pytest.raises(RuntimeError, match="took the backend no name"):
        products.compressed(weight, backend)
    assert chosen == [backend == "cutlass"] and kind._FORCE_CUTLASS is None
    monkeypatch.delattr(torch.sparse, "SparseSemiStructuredTensor")
    with pytest.raises(RuntimeError, match="has no semi-structured sparse tensors"):
        products.compressed(weight, backend)


def test_an_error_that_breaks_the_device_ends_the_command(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access")

    measuring = command.Measuring("cuda", command.Rows(tmp_path / "rows.jsonl", COMMON), {}, 6, 1e-4)
    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(SystemExit, match=r"answers no more .*illegal memory access.*call the command again"):
        measuring._check_device()


@pytest.mark.parametrize(
    ("given", "told"), [(["--rounds", "5"], "5 give no interval"), ([], "sees no CUDA device")]
)
def test_what_cannot_be_measured_ends_the_command_before_a_row(
    given: list[str], told: str, command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["sparse_gpu.py", "--out", str(tmp_path / "rows.jsonl"), *given])
    with pytest.raises(SystemExit, match=told):
        command.main()
    assert not list(tmp_path.iterdir())


def checkpoint(folder: Path, *, noted: str | None, fill: bool = False) -> Path:
    """A SASRec in which every other input is off, and what it notes of that."""
    config = SasrecConfig(layers=2, hidden=16)
    model = build_model(config, n_items=8, max_length=4, seed=1).eval()
    linears = body_linears(model.bodies()["user"])
    rough = Sparsity(
        method="magnitude", pattern="2:4", sparsity=0.5, matrices=dict.fromkeys(linears, 0.5), zeros=0,
        weights=1,
    )  # fmt: skip
    for each in linears.values():
        each.matrix()[:, ::2] = 0
    note = measure(model.bodies()["user"], rough).model_copy(update={"pattern": noted})
    if fill:
        linears["1.up"].matrix()[0] = 1.0
    about = {} if noted is None else {"sparsity": note.model_dump(mode="json")}
    prepared = tiny_log(folder / "prepared")
    save_checkpoint(model, folder / "checkpoint", prepared=prepared, model_config=config, about=about)
    return folder / "checkpoint"


def test_a_sparse_checkpoint_gives_one_matrix_of_each_shape(
    command: ModuleType, products: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "sparse", noted="2:4")
    found = products.matrices_of(path)
    assert all(is_2_to_4(each) for each in found.values())
    shapes = [tuple(each.shape) for each in found.values()]
    assert len(shapes) == len(set(shapes)) and (16, 16) in shapes
    monkeypatch.setattr(command, "PRECISIONS", ("fp16",))
    rows = run(command, monkeypatch, tmp_path / "rows.jsonl", "--checkpoint", str(path))
    assert {row["matrix"] for row in rows} == set(found)
    assert {row["weights"] for row in rows} == {command.label(path)} and "sparse " in rows[0]["weights"]


@pytest.mark.parametrize(
    ("noted", "fill", "told"),
    [
        (None, False, "notes no zeros, not 2:4 ones"),
        ("unstructured", False, "notes unstructured zeros, not 2:4 ones"),
        ("2:4", True, "something has filled them"),
    ],
)
def test_a_checkpoint_without_2_to_4_zeros_is_refused(
    noted: str | None, fill: bool, told: str, command: ModuleType, products: ModuleType,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    path = checkpoint(tmp_path / "other", noted=noted, fill=fill)
    with pytest.raises(InputError, match=told):
        products.matrices_of(path)
    with pytest.raises(SystemExit, match=told):
        run(command, monkeypatch, tmp_path / "rows.jsonl", "--checkpoint", str(path))
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_command_imports_on_a_host_with_few_packages() -> None:
    imports(["sparse_gpu"], (*NEVER, "polars", "yaml", "transformers", "onnx", "onnxruntime"))


@pytest.mark.gpu
def test_on_a_gpu_both_backends_give_the_dense_numbers(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    monkeypatch.setattr(command, "TINY", {"attention": (512, 512), "up": (1536, 512)})
    monkeypatch.setattr(sys, "argv", ["sparse_gpu.py", "--out", str(file), "--tiny", "--rounds", "6"])
    command.main()
    rows = rows_in(file)
    wrong = [row for row in rows if row.get("skipped") == "its answers are not those of the dense product"]
    assert not wrong
    ways = {row["way"] for row in rows if "skipped" not in row}
    assert "dense" in ways and ways & {"cusparselt", "cutlass"}, {row.get("skipped") for row in rows}
