"""Engines in artifacts: what the stage writes, measures and refuses, and what a refresh makes of them.

TensorRT is a stand-in (tests.fakes.tensorrt) whose engines run the graph in onnxruntime.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.engines
import export.tensorrt
from bench.candidates import device_of
from export.artifact import open_artifact
from export.engines import EngineOrder
from export.runtime import Artifact, ArtifactError
from export.stage import run
from export.tensorrt_config import TensorrtConfig
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError, StageError
from recommender.scoring import HistoryArrays
from recommender.sparsity import Zeros
from recommender.stage import Bound, Shape
from recpress import given
from recpress.given import scorers
from tests.export.engines import PROFILES, config, context_in, entries, lists
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, left_padded
from tests.export.test_quantized_body import quantized_model
from tests.fakes.device import HERE, CpuDevice

RIGHT_DEVICE = export.tensorrt.open_device


HALVES = ("tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16")


def test_the_stage_builds_proves_and_measures_engines(
    fake_trt: ModuleType, plain_student: Bound, prepared: Prepared, tmp_path: Path, cache: Path
) -> None:
    context = context_in(tmp_path, prepared)
    metrics = run(config(*HALVES), {"student": plain_student}, context).metrics
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


def test_an_engine_answers_through_the_served_path(fake_trt: ModuleType, with_engine: Path) -> None:
    engine, whole = lists(with_engine, "tensorrt-fp16"), lists(with_engine, "fp32")
    np.testing.assert_allclose(engine.scores, whole.scores, atol=0.01)
    assert engine.items.max() <= N_ITEMS  # spare rows never come back
    opened = Artifact(with_engine, variant="tensorrt-fp16", device="cuda")
    assert opened.graph.runtime == "TensorRT 11.4.0.106"  # type: ignore[union-attr]
    empty = opened.top_k(HistoryArrays(np.zeros((0, 3), np.int64)), 5)
    assert empty.items.shape == (0, 5)
    assert np.isfinite(opened.score(HistoryArrays(left_padded(2, 5)), np.array([[1, 2], [3, 4]]))).all()


def test_it_is_opened_only_where_it_was_built_for(
    fake_trt: ModuleType, with_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"tensorrt-fp16\.plan of .* is for TensorRT .* on Fake H200"):
        open_artifact(with_engine, variant="tensorrt-fp16", device="cpu")
    elsewhere = CpuDevice(HERE._replace(gpu="L4", capability="8.9"))
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: elsewhere)
    with pytest.raises(
        InputError, match=r"cannot be opened here: .* built for GPU Fake H200 \(9.0\), here L4"
    ):
        open_artifact(with_engine, variant="tensorrt-fp16", device="cuda")


def test_a_call_that_fails_is_told_as_tensorrts(fake_trt: ModuleType, with_engine: Path) -> None:
    opened = Artifact(with_engine, variant="tensorrt-fp16", device="cuda")
    fake_trt.FAIL.add("context")
    with pytest.raises(
        ArtifactError, match=r"TensorRT 11\.4\.0\.106 could not answer: TensorRT failed at creating"
    ):
        opened.top_k(HistoryArrays(left_padded(2, 3)), 5)


def test_the_copy_beside_the_runtime_opens_an_engine_without_our_package(
    with_engine: Path, tmp_path: Path
) -> None:
    """The stand-in needs our package for itself; what is shown is which module the runtime imports."""
    script = (
        "import sys, types; sys.path.insert(0, sys.argv[1]); import runtime_tensorrt as engine, runtime; "
        "asked = []; engine.open_device = lambda: asked.append(1) or sys.exit(7); "
        "runtime.Artifact(sys.argv[1], variant='tensorrt-fp16', device='cuda')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(with_engine)], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 7, done.stderr.decode()


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
    assert verify_artifact(context.folder / "artifact", variant=name).max_score_difference > 0


def test_fp8_needs_a_gpu_that_has_it(
    fake_trt: ModuleType, plain_student: Bound, prepared: Prepared, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    older = CpuDevice(HERE._replace(gpu="A100", capability="8.0"))
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: older)
    with pytest.raises(InputError, match=r"A100 \(compute capability 8.0\) has no 8-bit floats"):
        run(config("tensorrt-fp8"), {"student": plain_student}, context_in(tmp_path, prepared))


def test_no_tensorrt_ends_the_stage_before_any_work(
    plain_student: Bound, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    context = context_in(tmp_path, prepared)
    with pytest.raises(InputError, match=r"TensorRT cannot be imported.*\n.*pypi\.nvidia\.com") as caught:
        run(config("tensorrt-fp16"), {"student": plain_student}, context)
    assert caught.value.exit_code == 2 and list(context.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "error"), [("build", StageError), ("linted", StageError), ("imprecise", GateError)]
)
def test_an_engine_that_cannot_be_built_or_proved_leaves_no_artifact(
    fake_trt: ModuleType, plain_student: Bound, prepared: Prepared, tmp_path: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception],
) -> None:  # fmt: skip
    fake_trt.FAIL.add(step)
    if step in ("linted", "imprecise"):
        monkeypatch.setattr(export.engines, "to_half", lambda model, kind: model)
    if step == "imprecise":
        monkeypatch.setattr(export.engines, "lint", lambda path, **asked: ())
    context = context_in(tmp_path, prepared)
    with pytest.raises(error, match=r"failed at building|fp16 is promised, but|fp16 was promised, but"):
        run(config("tensorrt-fp16"), {"student": plain_student}, context)
    assert list(context.folder.iterdir()) == []


def test_a_run_on_another_gpu_builds_its_engines_anew(
    fake_trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config("fast").machine == {}
    assert config("tensorrt-fp16").machine == HERE._asdict()
    assert config("tensorrt-fp16").lacking() is None
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(export.tensorrt, "open_device", RIGHT_DEVICE)
    assert config("tensorrt-fp16").machine == {}
    assert "pip install" in str(config("tensorrt-fp16").lacking())
    assert config("fast").lacking() is None


def test_a_bench_compares_engines_where_they_can_run(
    with_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [ref.options["variant"] for ref in scorers("a", "artifact", with_engine)] == ["fp32"]
    monkeypatch.setattr(given, "can_run_engines", lambda: True)
    whole, engine = scorers("a", "artifact", with_engine)
    assert (whole.runtime, engine.runtime, engine.options["variant"]) == (
        "onnxruntime", "tensorrt", "tensorrt-fp16",
    )  # fmt: skip
    assert [device_of(engine, wanted) for wanted in ("cpu", "cuda")] == ["cuda", "cuda"]


def test_the_default_check_refuses_what_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(StageError, match="not valid ONNX"):
        EngineOrder(TensorrtConfig(), tmp_path).check(tmp_path / "a.onnx")


def test_the_default_check_refuses_float32_weights_where_fp16_is_promised(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((256, 256), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 256])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    for name in ("tensorrt-fp32.onnx", "tensorrt-fp16.onnx"):
        (tmp_path / name).write_bytes(model.SerializeToString())
    EngineOrder(TensorrtConfig(), tmp_path).check(tmp_path / "tensorrt-fp32.onnx")
    with pytest.raises(StageError, match="would not take this graph: precision"):
        EngineOrder(TensorrtConfig(), tmp_path).check(tmp_path / "tensorrt-fp16.onnx")


def test_the_default_check_refuses_a_dynamic_axis_that_no_profile_covers(tmp_path: Path) -> None:
    def write(name: str, axis: str | int) -> Path:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [value("x", TensorProto.FLOAT, ["batch", axis])],
            [value("y", TensorProto.FLOAT, ["batch", axis])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
        (tmp_path / name).write_bytes(model.SerializeToString())
        return tmp_path / name

    order = EngineOrder(TensorrtConfig(), tmp_path)
    order.check(write("fixed.onnx", 50))
    with pytest.raises(StageError, match=r"would not take this graph.*length"):
        order.check(write("dynamic.onnx", "length"))


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
    fake_trt: ModuleType, plain_student: Bound, prepared: Prepared, tmp_path: Path, cache: Path
) -> None:
    context, asked = context_in(tmp_path, prepared), config("tensorrt-fp16", length=6)
    parity = asked.parity.model_copy(update={"max_ndcg_change": 1.0})
    run(asked.model_copy(update={"parity": parity}), {"student": plain_student}, context)
    opened = Artifact(context.folder / "artifact", variant="tensorrt-fp16", device="cuda")
    long = left_padded(3, MAX_LENGTH)
    np.testing.assert_array_equal(
        opened.top_k(HistoryArrays(long), 5).items, opened.top_k(HistoryArrays(long[:, -6:]), 5).items
    )
    manifest = json.loads((context.folder / "artifact/manifest.json").read_text())
    assert manifest["variants"][1]["max_length"] == 6
