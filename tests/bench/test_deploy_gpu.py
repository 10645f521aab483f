"""The command of the GPU table: order, rows that are there already, and a whole run on the processor."""

import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from recommender.scoring import HistoryArrays

SCRIPTS = Path(__file__).parents[2] / "docs" / "results" / "scripts"
OWN = {"gpu": "Some GPU", "tiny": False}
CELL = {"kind": "cell", "device": "cuda", **OWN, "model": "student", "items": 12_000, "way": "bf16"}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_table")


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_candidates")


def test_every_cell_is_in_the_table_once_and_quick_begins_it(
    table: ModuleType, candidates: ModuleType
) -> None:
    every = list(table.jobs(quick=False, ways=candidates.EVERY_WAY))
    cells = [(job.model, job.items, job.way, batch) for job in every for batch in job.batches]
    assert len(cells) == len(set(cells)) == 2 * 3 * len(candidates.EVERY_WAY) * 4
    quick = list(table.jobs(quick=True, ways=candidates.EVERY_WAY))
    assert quick == every[: len(quick)]
    assert quick[0] == ("teacher", 12_000, "eager", (1, 1024))
    assert {job.way for job in table.jobs(quick=False, ways=["aot", "eager"])} == {"aot", "eager"}
    assert {job.items for job in table.jobs(quick=True, ways=["eager"], tiny=True)} == {120, 10_000}


def test_rows_that_are_there_are_not_measured_again_and_skipped_ones_on_request(
    table: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {**CELL, "batch": 1, "p50_ms": 1.0}, {**CELL, "batch": 32, "skipped": "out of memory"},
        {**CELL, "batch": 256, "gpu": "Another GPU"}, {**CELL, "batch": 1024, "tiny": True},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = table.Job("student", 12_000, "bf16", (1024, 1, 32, 256))
    assert table.Table(file, "cuda", OWN).missing(job) == (256, 1024)
    assert table.Table(file, "cuda", OWN, retry=True).missing(job) == (32, 256, 1024)
    assert table.Table(file, "cpu", OWN).missing(job) == (1, 32, 256, 1024)
    found = table.Table(file, "cuda", OWN)
    values = {"model": "student", "items": 12_000, "way": "bf16", "batch": 256}
    found.add("cell", **values, p50_ms=1.0, share_of_bound=0.5)
    assert found.missing(job) == table.Table(file, "cuda", OWN).missing(job) == (1024,)


def test_a_line_that_is_no_row_is_told_with_its_number(table: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**CELL, "batch": 1}) + "\n" + '{"kind": "cel')
    with pytest.raises(SystemExit, match=r"rows.jsonl:2: is no row .*remove the line"):
        table.Table(file, "cuda", OWN)


@pytest.mark.parametrize(
    ("way", "device", "expected"),
    [
        ("eager", "cuda", ("fp32", "fp32", "fp32", False)),
        ("tf32", "cuda", ("fp32", "fp32", "fp32", True)),
        ("graphs-bf16", "cuda:1", ("bf16", "bf16", "bf16", False)),
        ("bf16", "cpu", ("bf16", "fp32", "fp32", False)),
        ("aot-bf16", "cuda", ("bf16", "fp32", "fp32", False)),
        ("tensorrt-bf16", "cuda", ("bf16", "bf16", "fp32", False)),
        ("tensorrt-fp16", "cuda", ("fp16", "fp16", "fp32", False)),
        ("ort-cuda", "cuda", ("fp32", "fp32", "fp32", False)),
        ("ort-tensorrt", "cuda", ("fp32", "fp32", "fp32", True)),
    ],
)
def test_the_peak_of_a_way_is_that_of_its_products(
    candidates: ModuleType, way: str, device: str, expected: Any
) -> None:
    assert candidates.precisions(way, device) == expected


def test_every_way_can_be_sent_to_a_child(candidates: ModuleType, tmp_path: Path) -> None:
    for way in candidates.EVERY_WAY:
        ref = candidates.reference_to(way, candidates.SIZES["student"], 50, batches=(1, 4), cache=tmp_path)
        assert json.loads(json.dumps(dict(ref.options))) == dict(ref.options)
        assert callable(getattr(candidates, ref.opener.partition(":")[2]))


@pytest.mark.slow
@pytest.mark.parametrize("opener", ["open_onnx", "open_aot"])
def test_exported_models_list_what_the_model_lists(
    candidates: ModuleType, tmp_path: Path, opener: str
) -> None:
    if opener == "open_aot":
        pytest.importorskip("export.aot_build", reason="this version has no AOTInductor packages")
    size = {"layers": 1, "hidden": 16, "heads": 2, "ffn": 24, "item_dim": 8, "length": 12}
    given = {"device": "cpu", "threads": 1, "size": size, "n_items": 60}
    more = {"open_onnx": {"provider": "CPUExecutionProvider"}, "open_aot": {"way": "aot", "batches": (1, 4)}}
    rows = np.random.default_rng(0).integers(1, 61, (4, 12))
    for asked in (HistoryArrays(rows, rows), HistoryArrays(rows)):
        want = candidates.open_torch(tmp_path, way="eager", **given).top_k(asked, 10)
        found = getattr(candidates, opener)(tmp_path, **given, **more[opener]).top_k(asked, 10)
        assert np.array_equal(found.items, want.items) and np.allclose(found.scores, want.scores, atol=1e-5)


BLOCK = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {missing} else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
NEVER = (
    "bitsandbytes",
    "faiss",
    "plotly",
    "optimum",
    "tensorrt",
    "onnxruntime_gpu",
    "pynvml",
    "optuna",
    "ray",
)


def imports(modules: list[str], missing: tuple[str, ...], *, folder: Path = SCRIPTS) -> None:
    """Import in a fresh process that lacks packages."""
    code = textwrap.dedent(BLOCK).format(missing=missing) + "".join(f"import {each}\n" for each in modules)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + code
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_a_bench_needs_no_optional_package() -> None:
    imports(["recpress.cli.app", "bench.session", "bench.worker", "bench.report.files"], NEVER)


def test_what_times_made_up_histories_needs_no_polars() -> None:
    imports(["bench.timing", "bench.crew", "bench.worker", "bench.roofline"], (*NEVER, "polars", "yaml"))


@pytest.mark.slow
def test_the_command_imports_on_a_host_without_polars() -> None:
    imports(["deploy_gpu", "recommender.torch_ways", "recommender.models.build"], (*NEVER, "polars"))


@pytest.mark.slow
def test_the_command_makes_its_table_on_a_processor_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    command, table = importlib.import_module("deploy_gpu"), importlib.import_module("gpu_table")
    file = tmp_path / "rows.jsonl"
    ways = ("eager", "bf16", "graphs", "ort-cuda", "tensorrt-bf16")

    def run(batches: tuple[int, ...]) -> list[dict[str, Any]]:
        found = [table.Job("student", 60, way, batches) for way in ways]
        monkeypatch.setattr(command, "jobs", lambda **_: iter(found))
        given = ["--out", str(file), "--device", "cpu", "--tiny", "--quick", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", ["deploy_gpu.py", *given, "--cache", str(tmp_path)])
        command.main()
        return [json.loads(line) for line in file.read_text().splitlines()]

    machine, *first = run((1, 4))
    assert machine["kind"] == "machine" and set(machine["machine"]["gemm"]) == {
        "fp32",
        "tf32",
        "bf16",
        "fp16",
    }
    assert [(row["way"], row["batch"]) for row in first] == [(way, batch) for way in ways for batch in (1, 4)]
    eager, bf16 = first[0], first[2]
    assert eager["share_of_bound"] > 0 and "aa_floor" in eager and "speedup" not in eager
    assert bf16["precision"] == "bf16" and bf16["speedup"] > 0 and bf16["samples"] >= 6
    assert bf16["users_per_second"] == pytest.approx(1e3 / bf16["p50_ms"])
    skipped = {row["way"]: row["skipped"] for row in first[4:]}
    assert "needs CUDA" in skipped["graphs"] and "CUDAExecutionProvider" in skipped["ort-cuda"]
    assert "needs a GPU" in skipped["tensorrt-bf16"]
    again = run((1, 4, 8))
    assert again[: len(first) + 1] == [machine, *first]
    assert [(row["way"], row["batch"]) for row in again[len(first) + 1 :]] == [(way, 8) for way in ways]


@pytest.mark.slow
def test_the_command_says_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.syspath_prepend(SCRIPTS)
    command = importlib.import_module("deploy_gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["deploy_gpu.py", "--out", str(tmp_path / "rows.jsonl")])
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        command.main()
    assert not (tmp_path / "rows.jsonl").exists()
