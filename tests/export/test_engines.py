"""Engines in artifacts: what the stage writes, measures and refuses, and what a refresh makes of them.

TensorRT is a stand-in (tests.fakes.tensorrt) whose engines run the graph in onnxruntime.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import polars as pl
import pytest

import export.engines
import export.tensorrt
from bench.candidates import device_of
from export.artifact import open_artifact
from export.engines import EngineOrder, engine_graph
from export.fp8 import fp8_products
from export.recorded import Recorded, recorded
from export.refresh import refresh_items
from export.runtime import Artifact, ArtifactError
from export.stage import ExportConfig, run
from export.static import static_graph
from export.tensorrt_config import TensorrtConfig
from export.variants import ENGINE, VariantName
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError, StageError
from recommender.files import read_json
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from recommender.sparsity import Zeros
from recommender.stage import Bound, Context, Shape
from recpress import given
from recpress.given import scorers
from tests.export.bodies import canonical, scoring_graph, session
from tests.export.engines import built
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, TOP_K, left_padded
from tests.export.test_quantized_body import quantized_model
from tests.export.test_refresh import present
from tests.fakes.device import HERE, CpuDevice
from tests.recommender.fixtures import context_for

PROFILES = [[1, 1, 1], [1, 4, 8]]
RIGHT_DEVICE = export.tensorrt.open_device


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, sasrec: SequentialRecommender, prepared: Prepared
) -> Bound:
    folder = tmp_path_factory.mktemp("stages") / "00-student"
    save_checkpoint(sasrec, folder / "checkpoint", prepared=prepared, model_config=MODELS["sasrec"])
    return Bound("student", "checkpoint", folder / "checkpoint", folder)


def context_in(folder: Path, prepared: Prepared) -> Context:
    return dataclasses.replace(context_for(prepared, folder, max_length=MAX_LENGTH), threads=1)


def config(*variants: str, top_k: int = TOP_K, **tensorrt: Any) -> ExportConfig:
    asked = {"profiles": PROFILES, **tensorrt}
    given = {"of": "student", "as": "trt", "top_k": top_k, "variants": list(variants), "tensorrt": asked}
    return ExportConfig.model_validate(given | {"parity": {"users": 20, "max_ndcg_change": 0.05}})


@pytest.fixture(name="cache")
def timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorrt"


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in read_json(folder / "manifest.json")["variants"]}


HALVES = ("tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16")


def test_the_stage_builds_proves_and_measures_engines(
    fake_trt: ModuleType, student: Bound, prepared: Prepared, tmp_path: Path, cache: Path
) -> None:
    context = context_in(tmp_path, prepared)
    metrics = run(config(*HALVES), {"student": student}, context).metrics
    folder = context.folder / "artifact"
    found = entries(folder)
    assert metrics["default_variant"] == "fp32" and list(found) == ["fp32", *HALVES]
    for name in HALVES:
        entry, precision = found[name], name.partition("-")[2]
        assert entry["graph"] == f"catalogue-1/{name}.plan" and entry["on_cpu"] is False
        assert entry["files"] == [entry["graph"], f"catalogue-1/{name}.onnx", "runtime_tensorrt.py"]
        assert entry["runs_on"] == "TensorRT 11.4.0.106 on Fake H200 (device cuda)"
        told = entry["engine"]
        assert told["machine"] == HERE._asdict() and told["profiles"] == PROFILES
        assert (told["length"], told["seen"]) == (MAX_LENGTH, 64)  # the longest history has 20 items
        assert told["precision_proof"]["products"][precision] > 5
        assert entry["parity"]["top10_overlap"] > 0.9 and "speedup" not in entry
    assert found["tensorrt-fp32"]["parity"]["max_score_error"] < 1e-5
    assert 0 < found["tensorrt-fp16"]["parity"]["max_score_error"] < 0.05
    assert {"runtime_tensorrt.py", "catalogue-1/tensorrt-fp16.plan"} <= set(verify_artifact(folder).files)
    assert (folder / "runtime_tensorrt.py").read_bytes() == Path(export.tensorrt.__file__).read_bytes()
    assert [file.name for file in cache.iterdir()] == [
        found["tensorrt-fp16"]["engine"]["timing_cache"]["file"]
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, student: Bound, prepared: Prepared) -> Path:
    """An artifact with an engine that can be refitted, and one that cannot hold more items; read only."""
    from tests.fakes import tensorrt

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        tensorrt.reset()
        patch.setitem(sys.modules, "tensorrt", tensorrt)
        patch.setattr(export.tensorrt, "open_device", CpuDevice)
        patch.setenv("RECPRESS_CACHE", str(folder / "cache"))
        context = context_in(folder, prepared)
        asked = config("tensorrt-fp16", refittable=True, spare_items=3)
        run(asked, {"student": student}, context)
    return context.folder / "artifact"


@pytest.fixture
def own(made: Path, tmp_path: Path, cache: Path) -> Path:
    shutil.copytree(made, tmp_path / "artifact")
    return tmp_path / "artifact"


def lists(folder: Path, variant: str) -> Any:
    history = HistoryArrays(left_padded(21, MAX_LENGTH), left_padded(21, 9, seed=1))
    device = "cuda" if variant.startswith("tensorrt") else "cpu"
    return Artifact(folder, variant=variant, device=device).top_k(history, TOP_K)


def test_an_engine_answers_through_the_served_path(fake_trt: ModuleType, made: Path) -> None:
    engine, whole = lists(made, "tensorrt-fp16"), lists(made, "fp32")
    np.testing.assert_allclose(engine.scores, whole.scores, atol=0.01)
    assert engine.items.max() <= N_ITEMS  # spare rows never come back
    opened = Artifact(made, variant="tensorrt-fp16", device="cuda")
    assert opened.graph.runtime == "TensorRT 11.4.0.106"  # type: ignore[union-attr]
    empty = opened.top_k(HistoryArrays(np.zeros((0, 3), np.int64)), 5)
    assert empty.items.shape == (0, 5)
    assert np.isfinite(opened.score(HistoryArrays(left_padded(2, 5)), np.array([[1, 2], [3, 4]]))).all()


def test_it_is_opened_only_where_it_was_built_for(
    fake_trt: ModuleType, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"tensorrt-fp16\.plan of .* is for TensorRT .* on Fake H200"):
        open_artifact(made, variant="tensorrt-fp16")
    elsewhere = CpuDevice(HERE._replace(gpu="L4", capability="8.9"))
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: elsewhere)
    with pytest.raises(
        InputError, match=r"cannot be opened here: .* built for GPU Fake H200 \(9.0\), here L4"
    ):
        open_artifact(made, variant="tensorrt-fp16", device="cuda")


def test_a_call_that_fails_is_told_as_tensorrts(fake_trt: ModuleType, made: Path) -> None:
    opened = Artifact(made, variant="tensorrt-fp16", device="cuda")
    fake_trt.FAIL.add("context")
    with pytest.raises(
        ArtifactError, match=r"TensorRT 11\.4\.0\.106 could not answer: TensorRT failed at creating"
    ):
        opened.top_k(HistoryArrays(left_padded(2, 3)), 5)


def test_the_copy_beside_the_runtime_opens_an_engine_without_our_package(made: Path, tmp_path: Path) -> None:
    """The stand-in needs our package for itself; what is shown is which module the runtime imports."""
    script = (
        "import sys, types; sys.path.insert(0, sys.argv[1]); import runtime_tensorrt as engine, runtime; "
        "asked = []; engine.open_device = lambda: asked.append(1) or sys.exit(7); "
        "runtime.Artifact(sys.argv[1], variant='tensorrt-fp16', device='cuda')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script, str(made)], cwd=tmp_path, capture_output=True)
    assert done.returncode == 7, done.stderr.decode()


def changed(folder: Path, *, more: int) -> tuple[pl.DataFrame, Any]:
    """The catalogue with other vectors, and `more` items besides."""
    items, vectors = present(folder)
    items = pl.concat([items, pl.DataFrame({"item_id": [f"new{i}" for i in range(more)]})], how="diagonal")
    return items, np.concatenate([vectors[::-1], 2 * vectors[:more]]).astype(np.float32)


@pytest.mark.parametrize("more", [0, 3])
def test_a_refresh_refits_an_engine_while_the_items_fit(fake_trt: ModuleType, own: Path, more: int) -> None:
    refresh_items(own, *changed(own, more=more))
    assert "build" not in fake_trt.CALLS and "refit" in fake_trt.CALLS
    entry = entries(own)["tensorrt-fp16"]
    assert entry["graph"] == "catalogue-2/tensorrt-fp16.plan" and entry["engine"]["refitted"] is True
    assert entry["agreement"]["recall"] > 0.95
    np.testing.assert_allclose(lists(own, "tensorrt-fp16").scores, lists(own, "fp32").scores, atol=0.02)
    verify_artifact(own)
    fake_trt.reset()
    refresh_items(own, *present(own))  # and once more
    assert "build" not in fake_trt.CALLS


def test_a_refresh_builds_anew_where_they_do_not(fake_trt: ModuleType, own: Path) -> None:
    refresh_items(own, *changed(own, more=4))
    assert "build" in fake_trt.CALLS and "refit" not in fake_trt.CALLS
    entry = entries(own)["tensorrt-fp16"]
    assert "refitted" not in entry["engine"] and entry["engine"]["seen"] == 64
    np.testing.assert_allclose(lists(own, "tensorrt-fp16").scores, lists(own, "fp32").scores, atol=0.02)
    verify_artifact(own)


@pytest.mark.parametrize("step", ["refit", "build"])
def test_a_refresh_that_fails_changes_nothing(fake_trt: ModuleType, own: Path, step: str) -> None:
    before = read_json(own / "manifest.json")
    fake_trt.FAIL.add(step)
    with pytest.raises(StageError, match=rf"TensorRT failed at {step}"):
        refresh_items(own, *changed(own, more=4 if step == "build" else 0))
    assert read_json(own / "manifest.json") == before and not (own / "catalogue-2").exists()


def test_a_refresh_without_a_gpu_says_so_and_changes_nothing(
    own: Path, fake_trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> CpuDevice:
        raise export.tensorrt.MissingError("no CUDA device", export.tensorrt.INSTALL)

    monkeypatch.setattr(export.tensorrt, "open_device", missing)
    with pytest.raises(InputError, match=r"no CUDA device\n.*pip install .*tensorrt-cu13"):
        refresh_items(own, *changed(own, more=0))
    assert not (own / "catalogue-2").exists()


def order(**values: Any) -> EngineOrder:
    return EngineOrder(TensorrtConfig(profiles=((1, 4, 8),), seen=8), Path(), **values)


def proved(name: VariantName, graph: ir.Model, folder: Path) -> dict[str, Any]:
    """What an engine of a graph is proved to compute in."""
    ir.save(graph, folder / "graph.onnx")
    told = built(folder / "graph.onnx", folder / "graph.plan", ENGINE[name], profiles=((1, 4, 8),))
    return told["precision_proof"]


def answers(folder: Path, told: dict[str, Any]) -> Any:
    engine = export.tensorrt.Engine((folder / "graph.plan").read_bytes(), told, CpuDevice())
    given = {"items": left_padded(20, MAX_LENGTH), "seen": np.zeros((20, 1), np.int64)}
    return engine.run(("scores",), given)[0]


def exact(whole: ir.Model) -> Any:
    """The scores of all items in float32."""
    given = {"items": left_padded(20, MAX_LENGTH), "seen": np.zeros((20, 1), np.int64)}
    return session(whole).run(["scores"], given)[0]


@cache
def int8() -> tuple[ir.Model, dict[str, Recorded]]:
    model, quantization = quantized_model("sasrec", "int8-static")
    return scoring_graph(model), recorded(model, quantization)


TOLD = {
    "length": MAX_LENGTH, "seen": 8, "top_k": N_ITEMS, "profiles": [[1, 4, 8]],
    "flags": {"version_compatible": False},
}  # fmt: skip


@pytest.mark.parametrize("around", ["fp32", "fp16", "bf16"])
def test_int8_is_the_recorded_scheme_in_one_graph(fake_trt: ModuleType, tmp_path: Path, around: str) -> None:
    whole, matrices = int8()
    asked = order(matrices=matrices)
    asked = dataclasses.replace(asked, config=asked.config.model_copy(update={"around": around}))
    graph = engine_graph("tensorrt-int8", whole, asked, length=MAX_LENGTH, n_items=N_ITEMS)
    kinds = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
    for node in (each for each in graph.graph if each.op_type == "DequantizeLinear"):
        assert node.outputs[0].dtype == kinds[around]
        readers = {use.node.op_type for use in node.outputs[0].uses()}
        assert readers == {"MatMul"}  # no Cast between, which would keep TensorRT from fusing
    proof = proved("tensorrt-int8", graph, tmp_path)
    assert proof["products"]["int8"] >= len(matrices)
    right = exact(whole)
    assert 0 < np.abs(answers(tmp_path, TOLD) - right).max() < 0.1 * np.abs(right).max()


@pytest.mark.parametrize("around", ["fp32", "fp16"])
@pytest.mark.parametrize("family", ["sasrec", pytest.param("llama", marks=pytest.mark.slow)])
def test_fp8_holds_ranges_of_training_histories(
    fake_trt: ModuleType, tmp_path: Path, family: str, around: str
) -> None:
    asked = order(histories=HistoryArrays(left_padded(50, 9, seed=5)))
    asked = dataclasses.replace(asked, config=asked.config.model_copy(update={"around": around}))
    whole = canonical(family)
    graph = engine_graph("tensorrt-fp8", whole, asked, length=MAX_LENGTH, n_items=N_ITEMS)
    stored = [each for each in graph.graph.initializers.values() if each.dtype == ir.DataType.FLOAT8E4M3FN]
    assert all(np.abs(each.const_value.numpy().astype(np.float32)).max() <= 448 for each in stored)  # type: ignore[union-attr]
    assert len(stored) > 8
    assert proved("tensorrt-fp8", graph, tmp_path)["share"] >= 0.5
    right = exact(whole)
    assert 0 < np.abs(answers(tmp_path, TOLD) - right).max() < 0.15 * np.abs(right).max()


def test_fp8_without_a_matrix_is_refused() -> None:
    popular = static_graph(canonical("popularity"), length=MAX_LENGTH, seen=8)
    with pytest.raises(StageError, match="no product of this graph has a matrix of weights"):
        fp8_products(popular, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorrt-int8", "tensorrt-fp8"])
def test_the_stage_builds_8_bit_engines(
    fake_trt: ModuleType, prepared: Prepared, tmp_path: Path, cache: Path, name: str
) -> None:
    model, quantization = quantized_model("sasrec", "int8-static")
    place = tmp_path / "small" / "checkpoint"
    kept = quantization if name == "tensorrt-int8" else None
    save_checkpoint(model, place, prepared=prepared, model_config=MODELS["sasrec"], quantization=kept)
    small, context = Bound("student", "checkpoint", place, place.parent), context_in(tmp_path, prepared)
    run(config(name), {"student": small}, context)
    found = entries(context.folder / "artifact")[name]
    assert found["engine"]["precision_proof"]["share"] >= 0.5
    assert 0 < found["parity"]["max_score_error"] < 0.2


def test_fp8_needs_a_gpu_that_has_it(
    fake_trt: ModuleType, student: Bound, prepared: Prepared, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    older = CpuDevice(HERE._replace(gpu="A100", capability="8.0"))
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: older)
    with pytest.raises(InputError, match=r"A100 \(compute capability 8.0\) has no 8-bit floats"):
        run(config("tensorrt-fp8"), {"student": student}, context_in(tmp_path, prepared))


def test_no_tensorrt_ends_the_stage_before_any_work(
    student: Bound, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    context = context_in(tmp_path, prepared)
    with pytest.raises(InputError, match=r"TensorRT cannot be imported.*\n.*pypi\.nvidia\.com") as caught:
        run(config("tensorrt-fp16"), {"student": student}, context)
    assert caught.value.exit_code == 2 and list(context.folder.iterdir()) == []


@pytest.mark.parametrize(("step", "error"), [("build", StageError), ("imprecise", GateError)])
def test_an_engine_that_cannot_be_built_or_proved_leaves_no_artifact(
    fake_trt: ModuleType, student: Bound, prepared: Prepared, tmp_path: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception],
) -> None:  # fmt: skip
    fake_trt.FAIL.add(step)
    if step == "imprecise":
        monkeypatch.setattr(export.engines, "to_half", lambda model, kind: model)
    context = context_in(tmp_path, prepared)
    with pytest.raises(error, match=r"failed at building|fp16 was promised, but .* in fp32"):
        run(config("tensorrt-fp16"), {"student": student}, context)
    assert list(context.folder.iterdir()) == []


def test_a_run_on_another_gpu_builds_its_engines_anew(
    fake_trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config("fast").machine == {}
    assert config("tensorrt-fp16").machine == HERE._asdict()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(export.tensorrt, "open_device", RIGHT_DEVICE)
    assert config("tensorrt-fp16").machine == {}


def test_a_bench_compares_engines_where_they_can_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ref.options["variant"] for ref in scorers("a", "artifact", made)] == ["fp32"]
    monkeypatch.setattr(given, "can_run_engines", lambda: True)
    whole, engine = scorers("a", "artifact", made)
    assert (whole.runtime, engine.runtime, engine.options["variant"]) == (
        "onnxruntime", "tensorrt", "tensorrt-fp16",
    )  # fmt: skip
    assert [device_of(engine, wanted) for wanted in ("cpu", "cuda")] == ["cuda", "cuda"]


def test_the_default_check_refuses_what_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(StageError, match="not valid ONNX"):
        EngineOrder(TensorrtConfig(), tmp_path).check(tmp_path / "a.onnx")


def test_what_cannot_be_is_told_before_anything_runs() -> None:
    plain = {"student": Shape("checkpoint")}
    told = dict(config("tensorrt-fp16", top_k=3841).problems(plain))
    assert "tensorrt-fp16 answers 3840 at most" in told["top_k"]
    assert not config("fast", top_k=5000).problems(plain) and not config(
        "tensorrt-fp16", top_k=3840
    ).problems(plain)
    sparse = config("tensorrt-fp16", sparse=True)
    for zeros, has in ((None, "no zeros"), (Zeros("unstructured", 0.5), "unstructured zeros")):
        wrong = dict(sparse.problems({"student": Shape("checkpoint", sparsity=zeros)}))
        assert has in wrong["tensorrt.sparse"]
    assert not sparse.problems({"student": Shape("checkpoint", sparsity=Zeros("2:4", 0.5))})
    assert "is not quantized" in dict(config("tensorrt-int8").problems(plain))["variants"]
    four = {"student": Shape("checkpoint", quantized="int4")}
    assert "cannot hold int4" in dict(config("tensorrt-int8").problems(four))["variants"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profiles": [[1, 64, 16]]}, r"profile \[1, 64, 16\] is not"),
        ({"profiles": [[2, 4, 8]]}, "no profile holds batches of 1"),
        ({"profiles": [[1, 1, 1], [4, 8, 16]]}, "no profile holds batches of 2"),
        ({"spare_items": 5}, "spare_items is for refittable"),
        ({"profiles": []}, "at least 1"),
        ({"optimization_level": 6}, "less than or equal to 5"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorrtConfig.model_validate(values)


@pytest.mark.slow
def test_a_shorter_engine_reads_the_newest_items(
    fake_trt: ModuleType, student: Bound, prepared: Prepared, tmp_path: Path, cache: Path
) -> None:
    context, asked = context_in(tmp_path, prepared), config("tensorrt-fp16", length=6)
    parity = asked.parity.model_copy(update={"max_ndcg_change": 1.0})
    run(asked.model_copy(update={"parity": parity}), {"student": student}, context)
    opened = Artifact(context.folder / "artifact", variant="tensorrt-fp16", device="cuda")
    long = left_padded(3, MAX_LENGTH)
    np.testing.assert_array_equal(
        opened.top_k(HistoryArrays(long), 5).items, opened.top_k(HistoryArrays(long[:, -6:]), 5).items
    )
    manifest = json.loads((context.folder / "artifact/manifest.json").read_text())
    assert manifest["variants"][1]["max_length"] == 6
