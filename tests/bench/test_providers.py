"""onnxruntime's providers as devices of a bench: candidates, what is missing, and a whole report.

No provider of a GPU runs here; how an artifact opens one is shown in tests/export/test_providers.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from pydantic import ValidationError

from bench import energy
from bench.candidates import device_of, left_out, not_whole, resolve, runnable
from bench.config import BenchConfig
from bench.providers import PROVIDERS, check_devices, cuda_device
from bench.report.files import read
from bench.stage import run
from bench.timing import _Power, _Tracing
from export import runtime
from recommender.errors import InputError
from recommender.files import read_json, write_json
from recommender.stage import Bound, Context
from tests.bench.conftest import UP, bench_context, quick
from tests.bench.fakes import artifact, checkpoint

EVERY = ("cpu", "cuda", "tensorrt")


@pytest.fixture
def bounds(tmp_path: Path) -> dict[str, Bound]:
    """A checkpoint; an artifact whose default variant is in parts, and one that is whole."""
    two = artifact(tmp_path / "two", "two", UP, of="x", variants=("fast", "fp32"))
    manifest = read_json(two.path / "manifest.json")
    manifest["variants"][1]["graph"] = "fp32.onnx"
    write_json(two.path / "manifest.json", manifest)
    return {"x": checkpoint(tmp_path / "x", "x", UP), "two": two}


def provide(monkeypatch: pytest.MonkeyPatch, *devices: str) -> None:
    found = [PROVIDERS[each] for each in devices]  # type: ignore[index]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found)


def test_the_providers_are_those_that_an_artifact_opens_first() -> None:
    assert {device: names[0] for device, names in runtime.PROVIDERS.items()} == PROVIDERS


def test_every_onnx_variant_is_a_candidate_on_every_device_that_it_can_run_on(
    bounds: Mapping[str, Bound],
) -> None:
    found = resolve(["x", "two"], {1: bounds, 2: bounds}, devices=EVERY)
    assert [(each.name, each.variant, each.ref.device) for each in found] == [
        ("x", None, None),
        ("two", "fast", "cpu"),
        ("two:fast@cuda", "fast", "cuda"),
        ("two:fp32", "fp32", "cpu"),
        ("two:fp32@cuda", "fp32", "cuda"),
        ("two:fp32@tensorrt", "fp32", "tensorrt"),
    ]
    assert [device_of(each.ref, "cuda") for each in found[1:]] == [each.ref.device for each in found[1:]]
    assert runnable(found, "cuda") == (found, [])
    (said,) = not_whole(["x", "two"], {1: bounds}, EVERY)
    assert said.startswith("two:fast is not compared on tensorrt: TensorrtExecutionProvider wants whole")
    assert not_whole(["two"], {1: bounds}, ["cpu", "cuda"]) == [] == left_out(["two"], {1: bounds})


def test_an_engine_keeps_the_device_that_it_was_built_for(bounds: dict[str, Bound]) -> None:
    (scorer, _), two = bounds["two"].scorers, bounds["two"]
    engine = scorer.__class__("e", "artifact", "tensorrt", two.path, scorer.opener, {"variant": "e"}, "cuda")
    bounds["two"] = Bound("two", "artifact", two.path, two.stage_folder, (scorer, engine))
    found = resolve(["two"], {1: bounds}, devices=["cpu", "cuda"])
    assert [each.name for each in found] == ["two", "two:fast@cuda", "two:e"]


def test_tensorrt_alone_wants_a_whole_graph(bounds: dict[str, Bound], tmp_path: Path) -> None:
    (whole,) = resolve(["two"], {1: bounds}, devices=["tensorrt"])
    assert (whole.name, whole.variant) == ("two", "fp32")
    bounds["parts"] = artifact(tmp_path / "p", "parts", UP, of="x", variants=("fast",))
    with pytest.raises(InputError, match="no variant of 'parts' is a whole graph") as caught:
        resolve(["parts"], {1: bounds}, devices=["tensorrt"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("there", "asked", "said"),
    [
        (
            ["cpu"],
            ["cuda"],
            r"has no CUDAExecutionProvider\n.*pip install onnxruntime-gpu, or leave cuda out",
        ),
        (["cpu", "cuda"], ["cpu", "tensorrt"], r"TensorrtExecutionProvider\n.*onnxruntime-gpu tensorrt, or"),
        (
            ["cpu"],
            EVERY,
            r"no CUDAExecutionProvider and no Tensorrt.*\n.*install onnxruntime-gpu tensorrt, or",
        ),
    ],
)
def test_a_missing_provider_ends_the_bench_and_the_plan_tells_it(
    bounds: dict[str, Bound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    there: list[str], asked: list[str], said: str,
) -> None:  # fmt: skip
    provide(monkeypatch, *there)
    config = quick(compare=["two"], onnxruntime=asked)
    with pytest.raises(InputError, match=said) as caught:
        run(config, bounds, on_cuda(tmp_path, bounds))
    assert caught.value.exit_code == 2 and not list((tmp_path / "run").iterdir())
    assert "pip install onnxruntime-gpu" in str(config.lacking())


def test_a_provider_of_a_gpu_needs_the_device_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, *EVERY)
    with pytest.raises(
        InputError, match=r"variants on tensorrt where the device is 'cpu'.*\n.*--device cuda"
    ):
        check_devices(["cpu", "tensorrt"], "cpu")
    check_devices(["cpu"], "cpu")
    check_devices(EVERY, "cuda")
    assert quick(onnxruntime=EVERY).lacking() is None


def test_by_default_nothing_is_asked_of_the_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> list[str]:
        raise AssertionError

    monkeypatch.setattr(onnxruntime, "get_available_providers", never)
    assert quick().lacking() is None
    check_devices(quick().onnxruntime, "cpu")


@pytest.mark.parametrize("wrong", [["cpu", "cpu"], ["rocm"]])
def test_devices_that_are_unknown_or_named_twice_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"'cpu' twice|Input should be 'cpu', 'cuda' or 'tensorrt'"):
        BenchConfig.model_validate({"compare": ["x"], "onnxruntime": wrong})


def test_what_runs_in_tensorrt_runs_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [cuda_device(each) for each in (*EVERY, "cuda:1")] == [None, "cuda", "cuda", "cuda:1"]
    devices = {"a": "tensorrt", "b": "cpu", "c": "cuda"}
    assert _Tracing(devices).names == {"a", "c"}
    asked: list[str] = []
    monkeypatch.setattr(energy, "meter", lambda device, note: asked.append(device))
    _Power(quick(), devices)
    assert asked == ["cuda", "cpu"]  # one counter for both that are on the GPU


def on_cuda(folder: Path, bounds: Mapping[str, Bound]) -> Context:
    """A context as a machine with a GPU has it."""
    return replace(bench_context(folder, {1: bounds}), device="cuda")


def test_every_provider_is_timed_judged_and_reported(
    bounds: dict[str, Bound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(monkeypatch, *EVERY)
    context = on_cuda(tmp_path, bounds)
    small = {"batch_sizes": [1], "loads": ["full"], "aa": False, "energy": False}
    run(quick(compare=["two"], onnxruntime=EVERY, **small), bounds, context)
    report = read(context.folder)
    assert [(each.name, each.device) for each in report.candidates] == [
        ("two", "cpu"), ("two:fast@cuda", "cuda"), ("two:fp32", "cpu"), ("two:fp32@cuda", "cuda"),
        ("two:fp32@tensorrt", "tensorrt"),
    ]  # fmt: skip
    assert all(each.failed is None and each.quality and each.latency for each in report.candidates)
    assert {each.runtime for each in report.candidates} == {"onnxruntime"}
    assert any("two:fast is not compared on tensorrt" in note for note in report.sections.notes or [])
