"""Building an engine: every call in its order, every refusal told, nothing half-written.

TensorRT is a stand-in here (tests.fakes.tensorrt): nothing is said of what the real one does.
"""

import builtins
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import export.tensorrt
from export.half import to_half
from export.static import static_graph
from export.tensorrt import (
    Asked,
    EngineError,
    MissingError,
    build,
    refit,
)
from tests.export.engines import SEEN, built, fit
from tests.export.fixtures import MAX_LENGTH, TOP_K
from tests.fakes.device import HERE, CpuDevice

Scoring = dict[str, Path]


def test_what_is_asked_reaches_the_builder(fake_trt: ModuleType, scoring: Scoring, tmp_path: Path) -> None:
    told = built(
        scoring["fp32"], tmp_path / "a.plan", profiles=((1, 2, 4),), workspace_bytes=1 << 28,
        optimization_level=5, hardware="ampere-plus", version_compatible=True, sparse=True, tf32=True,
    )  # fmt: skip
    given = next(call for call in fake_trt.CALLS if isinstance(call, dict))
    assert given["flags"] == ["SPARSE_WEIGHTS", "TF32", "VERSION_COMPATIBLE"]
    assert (given["workspace"], given["level"], given["hardware"]) == (1 << 28, 5, "AMPERE_PLUS")
    assert given["profiles"] == [
        {
            "items": ((1, MAX_LENGTH), (2, MAX_LENGTH), (4, MAX_LENGTH)),
            "seen": ((1, SEEN), (2, SEEN), (4, SEEN)),
        }
    ]
    assert told["flags"]["hardware"] == "ampere-plus" and told["profiles"] == [[1, 2, 4]]


def test_the_manifest_says_what_an_engine_is_tied_to(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    told = built(scoring["fp32"], tmp_path / "a.plan")
    assert told["machine"] == HERE._asdict()
    assert told["tensors"]["top_items"] == {"mode": "output", "dtype": "INT64", "shape": [-1, TOP_K]}
    assert len(told["onnx_sha256"]) == 64 and told["device_memory_bytes"] > 0 and told["seconds"] > 0
    assert told["flags"]["tf32"] is False and told["timing_cache"] == {"file": None, "hit": False}
    given = next(call for call in fake_trt.CALLS if isinstance(call, dict))
    assert given["flags"] == []  # TF32 is on by default, and was cleared


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("parse", r"cannot read fp32.onnx: node 3 'node_x' \(NonZero\): unsupported; .*recpress lint"),
        ("network", r"failed at making a network: \[fake\] no network"),
        ("config", "failed at making a builder config"),
        ("made profile", "failed at making a profile"),
        ("empty profile", r"profile 0 \(1, 1, 1\) is refused; mend `tensorrt.profiles`"),
        ("profile", r"profile 0 \(1, 1, 1\) is refused; mend `tensorrt.profiles`"),
        ("made timing cache", r"refuses the timing cache .*\.timing; delete it"),
        ("timing cache", r"refuses the timing cache .*\.timing; delete it"),
        ("builder", r"failed at making a Builder \(.*nullptr\): \[fake\] no builder; .*does the driver fit"),
        ("runtime", r"failed at making a Runtime"),
        ("build", r"failed at building the engine: \[fake\] no build; .*workspace_bytes"),
        ("deserialize", r"failed at deserializing the engine: \[fake\] no deserialize"),
        ("mark", r"failed at marking the weights x as refittable"),
        ("made inspector", "failed at making an inspector"),
        ("inspector", r"failed at reading the inspector"),
        ("other outputs", r"the engine has .*other"),
    ],
)
def test_every_refusal_is_an_error_and_writes_nothing(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, step: str, message: str
) -> None:
    fake_trt.FAIL.add(step)
    asked: dict[str, Any] = {"timing_cache": tmp_path / "cache"} | (
        {"refittable": ("x",)} if step == "mark" else {}
    )
    with pytest.raises(EngineError, match=message):
        built(scoring["fp32"], tmp_path / "a.plan", **asked)
    assert not list(tmp_path.glob("*.plan")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("version", ["10.12.0.36", "11.4.0.106"])
def test_every_supported_parser_reads_the_graph_of_an_engine(
    fake_trt: ModuleType, scoring: Scoring, exported: Path, tmp_path: Path, precision: str, version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fake_trt, "__version__", version)
    built(scoring[precision], tmp_path / "a.plan", precision)
    if (precision, version[:5]) == ("fp32", "11.4."):
        return  # which reads Attention as well
    whole = static_graph(ir.load(exported / "catalogue-1/fp32.onnx"), length=MAX_LENGTH, seen=SEEN)
    ir.save(to_half(whole, "fp16") if precision == "fp16" else whole, tmp_path / "whole.onnx")
    wrong = "no importer registered for Attention" if version < "10.2" else "setting softmax_precision"
    with pytest.raises(EngineError, match=rf"cannot read whole\.onnx: .*\(Attention\): {wrong}"):
        built(tmp_path / "whole.onnx", tmp_path / "b.plan", precision)


def test_sizes_out_of_order_are_refused_by_name(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"profile 1 \(1, 64, 16\) is refused: min <= opt"):
        built(scoring["fp32"], tmp_path / "a.plan", profiles=((1, 1, 1), (1, 64, 16)))


def test_an_axis_without_a_profile_is_refused(fake_trt: ModuleType, scoring: Scoring, tmp_path: Path) -> None:
    graph = onnx.load(scoring["fp32"])
    graph.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "seen"
    onnx.save(graph, tmp_path / "loose.onnx")
    with pytest.raises(
        EngineError, match=r"axis 1 of the input seen is dynamic and in no profile.*tensorrt\.seen"
    ):
        built(tmp_path / "loose.onnx", tmp_path / "a.plan")


def test_the_check_comes_first(fake_trt: ModuleType, scoring: Scoring, tmp_path: Path) -> None:
    def unfit(path: Path) -> None:
        raise EngineError(f"{path.name} has operators of a vendor", "export another")

    with pytest.raises(EngineError, match="operators of a vendor"):
        build(
            scoring["fp32"], tmp_path / "a.plan", Asked(), precision="fp32", check=unfit, device=CpuDevice()
        )
    assert not fake_trt.CALLS


def test_progress_is_told_and_an_interrupt_stops_the_build(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    told: list[Any] = []

    def hear(event: str, values: Any) -> None:
        told.append((event, dict(values)))

    def interrupt(event: str, values: Any) -> None:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"precision": "fp32", "check": fit, "device": CpuDevice()}
    build(scoring["fp32"], tmp_path / "a.plan", Asked(), progress=hear, **given)
    assert told[-1] == ("step", {"text": "TensorRT: Building", "step": 2, "total": 2})
    with pytest.raises(KeyboardInterrupt):
        build(scoring["fp32"], tmp_path / "b.plan", Asked(), progress=interrupt, **given)
    assert not (tmp_path / "b.plan").exists()


def test_timings_are_kept_for_each_gpu_and_version(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    first, again = (
        built(scoring["fp32"], tmp_path / "a.plan", timing_cache=tmp_path / "cache")["timing_cache"]
        for _ in range(2)
    )
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name == first["file"] == "Fake-H200-9.0-tensorrt-11.4.0.106-cuda-13.0.timing"
    assert (first["hit"], again["hit"]) == (False, True) and file.read_bytes() == b"timings"


def test_timings_that_are_not_given_back_are_not_kept(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path
) -> None:
    fake_trt.FAIL.add("kept cache")
    told = built(scoring["fp32"], tmp_path / "a.plan", timing_cache=tmp_path / "cache")
    assert told["timing_cache"] == {"file": None, "hit": False} and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("set weights", r"refitting rows with \(1, 64\)"),
        ("missing weights", "a refit of another is missing"),
        ("refit", "failed at refitting the engine"),
        ("serialization config", "failed at making a serialization config"),
        ("serialize", "failed at serializing the refitted engine"),
    ],
)
def test_a_refit_that_fails_leaves_nothing(
    fake_trt: ModuleType, scoring: Scoring, tmp_path: Path, step: str, message: str
) -> None:
    plan = tmp_path / "a.plan"
    told = built(scoring["spare"], plan, refittable=("item_table", "rows"))
    fake_trt.FAIL.add(step)
    rows = {"rows": ("FLOAT", fake_trt.weights_of(plan.read_bytes(), "rows"))}
    with pytest.raises(EngineError, match=message):
        refit(plan, tmp_path / "b.plan", rows, told=told, device=CpuDevice())
    assert not (tmp_path / "b.plan").exists()


def test_only_a_refittable_engine_is_refitted(fake_trt: ModuleType, scoring: Scoring, tmp_path: Path) -> None:
    told = built(scoring["fp32"], tmp_path / "a.plan")
    with pytest.raises(EngineError, match=r"a\.plan cannot be refitted; .*refittable: true"):
        refit(tmp_path / "a.plan", tmp_path / "b.plan", {}, told=told, device=CpuDevice())


def test_a_missing_tensorrt_or_gpu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tensorrt":
            raise OSError("libnvinfer.so.11: cannot open shared object file")
        return found(name, *rest)

    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        MissingError, match=r"libnvinfer.*pip install --extra-index-url https://pypi.nvidia.com"
    ):
        export.tensorrt.open_device()


def test_a_machine_without_a_gpu_is_told(fake_trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match=r"sees no CUDA device; pip install .*tensorrt-cu13"):
        export.tensorrt.open_device()


@pytest.mark.parametrize("version", ["10.11.0.33", "12.0.0", "8.6.1"])
def test_other_versions_are_refused(
    fake_trt: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(fake_trt, "__version__", version)
    with pytest.raises(MissingError, match=rf"TensorRT {version} is not supported \(10.12 to 11.x are\)"):
        export.tensorrt.installed()
