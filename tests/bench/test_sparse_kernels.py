"""From the manifest of an engine to the sentence of the report that its checkpoint's zeros are unused."""

from dataclasses import replace
from pathlib import Path

from bench.report.files import read
from bench.stage import run
from recommender.files import read_json, write_json
from tests.bench.conftest import bench_context, quick, three_candidates
from tests.bench.test_candidates import SPARSE


def test_a_bench_tells_that_an_engine_was_built_without_sparse_kernels(tmp_path: Path) -> None:
    bounds = three_candidates(tmp_path)
    engine = bounds["student-onnx"]
    file = engine.path / "manifest.json"
    manifest = read_json(file) | {"sparsity": SPARSE}
    for entry, sparse in zip(manifest["variants"], (False, True), strict=True):
        entry["engine"] = {"flags": {"sparse": sparse}}
    write_json(file, manifest)
    refs = tuple(replace(ref, runtime="tensorrt") for ref in engine.scorers)
    by_seed = {1: bounds | {"student-onnx": replace(engine, scorers=refs)}}
    config = quick(batch_sizes=[1], aa=False)
    run(config, by_seed[1], bench_context(tmp_path, by_seed))
    report = read(tmp_path / "run")
    told = {each.name: each.zeros.sparse_kernels for each in report.candidates if each.zeros is not None}
    assert told == {"student-onnx": False, "student-onnx:int8": True}
    said = [each.text for each in report.sections.findings or () if "without kernels for them" in each.text]
    assert len(said) == 1 and said[0].startswith("student-onnx: 50% of the weights")
