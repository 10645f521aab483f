"""What verify opens on this machine, and what it tells of the rest: bf16, engines, compiled packages.

TensorRT is a stand-in (tests.fakes.tensorrt). Packages are real, but those that cannot be loaded.
"""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import export.tensorrt
from export import aot
from export.artifact import seal as seal_artifact
from export.runtime import Artifact, read_manifest
from export.stage import run
from export.triton.config import TritonConfig
from export.triton.repository import seal, write_repository
from export.triton.verify import verify_repository
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.models.interface import SequentialRecommender
from recpress.cli.app import main
from recpress.given import bind
from tests.export.engines import context_in
from tests.export.fixtures import make_artifact
from tests.export.test_aot_package import compiler_is_missing
from tests.export.triton.server import serving
from tests.export.triton.test_stage import config
from tests.fakes.device import HERE, CpuDevice
from tests.recpress.finished import last_json

RIGHT_DEVICE = export.tensorrt.open_device


def written(artifact: Path, folder: Path, *variants: str) -> Path:
    """The repository of some variants, the first one as `shop`."""
    asked = TritonConfig.model_validate({"name": "shop", "variants": variants, "seen_step": 8})
    write_repository(Artifact(artifact, variant="fp32", threads=1), folder, asked, name="shop")
    return folder


def change(folder: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    """Change what the manifest says of the first model."""
    manifest = read_json(folder / "repository.json")
    alter(manifest["models"][0])
    seal(folder, manifest)


def answered(folder: Path) -> dict[str, str]:
    """Who answered the golden requests of each model."""
    golden = read_json(folder / "golden.json")["answers"]
    return {name: each["answered_by"] for name, each in golden.items()}


def test_bf16_is_written_and_verified_where_no_kernel_runs_it(
    sasrec: SequentialRecommender, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_artifact(sasrec, tmp_path / "half", prepared, variants=("bf16",))
    notes: list[str] = []
    context = dataclasses.replace(
        context_in(tmp_path, prepared), progress=lambda _, values: notes.append(str(values["text"]))
    )
    asked = config(triton={"name": "shop", "kind": "gpu", "variants": ["bf16"]})
    metrics = run(asked, {"student-onnx": bind("student-onnx", made)}, context).metrics
    assert metrics["replayed"] == [] and "has no kernels" in metrics["not_replayed"]["shop"]
    assert any("shop was not replayed here: onnxruntime" in note for note in notes)
    folder = context.folder / "artifact"
    assert main(["verify", str(folder), "--json"]) == 0
    said = capsys.readouterr()
    assert "shop was not replayed here: onnxruntime" in " ".join(said.err.split())
    assert '"replayed": []' in said.out
    with serving(folder) as url:
        assert main(["verify", str(folder), "--url", url, "--json"]) == 0
        document = last_json(capsys)
    assert document["replayed"] == ["shop"] and document["not_replayed"] == {}
    assert document["max_score_difference"] > 0
    with serving(folder, higher(1.05)) as url:
        assert main(["verify", str(folder), "--url", url]) == 1


def test_a_server_that_is_off_by_more_than_fp16_rounds_fails(
    sasrec: SequentialRecommender, prepared: Prepared, tmp_path: Path
) -> None:
    made = make_artifact(sasrec, tmp_path / "artifact", prepared, variants=("fp16",))
    folder = written(made, tmp_path / "shop", "fp16")
    with serving(folder, higher(1.002)) as url:
        assert 1e-3 < verify_repository(folder, url=url).max_score_difference < 3e-3
    with serving(folder, higher(1.01)) as url, pytest.raises(GateError, match=r"off by 0\.01"):
        verify_repository(folder, url=url)


def higher(factor: float) -> Callable[[str, dict[str, Any]], Any]:
    """A server whose scores are multiplied."""

    def changed(what: str, answer: dict[str, Any]) -> Any:
        for each in answer.get("outputs", ()) if what == "infer" else ():
            if each["name"] == "scores":
                each["data"] = [factor * score for score in each["data"]]
        return answer

    return changed


@pytest.fixture
def engine(fake_trt: ModuleType, with_engine: Path, tmp_path: Path) -> Path:
    """The repository of an engine, written where it runs."""
    folder = written(with_engine, tmp_path / "engine", "tensorrt-fp16")
    assert answered(folder) == {"shop": "tensorrt-fp16"}
    return folder


def test_an_engine_is_replayed_where_it_runs(engine: Path) -> None:
    found = verify_repository(engine)
    assert found.replayed == ("shop",) and found.not_replayed == {} and found.max_score_difference < 1e-6


def test_an_engine_that_answers_otherwise_fails(engine: Path, with_engine: Path, tmp_path: Path) -> None:
    golden = engine / "golden.json"
    text = golden.read_text()
    first = read_json(golden)["answers"]["shop"]["lists"][0]["scores"][0]
    golden.write_text(text.replace(str(first), str(first + 0.1 * abs(first)), 1))
    seal(engine, read_json(engine / "repository.json"))
    with pytest.raises(GateError, match="golden request 0 to 'shop' is off by"):
        verify_repository(engine)


def test_an_engine_of_another_machine_is_told_with_the_reason(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = CpuDevice(HERE._replace(gpu="Fake A100", capability="8.0"))
    monkeypatch.setattr(export.tensorrt, "open_device", lambda: other)
    why = verify_repository(engine).not_replayed["shop"]
    assert "built for GPU Fake H200 (9.0), here Fake A100 (8.0)" in why
    monkeypatch.setattr(export.tensorrt, "open_device", RIGHT_DEVICE)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["verify", str(engine)]) == 0
    told = "shop was not replayed here: TensorRT cannot be imported"
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("step", "error", "what"),
    [
        ("deserialize", InputError, "failed at deserializing the engine"),
        ("context", GateError, "'shop' cannot answer here: TensorRT failed at creating an execution context"),
    ],
)
def test_an_engine_that_should_run_here_and_does_not_fails(
    step: str, error: type[Exception], what: str, engine: Path, fake_trt: ModuleType
) -> None:
    fake_trt.FAIL.add(step)
    with pytest.raises(error, match=what):
        verify_repository(engine)


def test_a_manifest_that_tells_too_little_of_an_engine_is_an_input_error(engine: Path) -> None:
    change(engine, lambda model: model["engine"].pop("machine"))
    with pytest.raises(InputError, match="does not say what it was built for"):
        verify_repository(engine)


def test_an_older_repository_without_the_facts_is_told_and_not_replayed(engine: Path) -> None:
    change(engine, lambda model: model.pop("engine"))
    assert "does not say what it was built for" in verify_repository(engine).not_replayed["shop"]


def test_a_version_compatible_engine_is_loaded_by_a_server_that_is_told_so(
    with_engine: Path, engine: Path, tmp_path: Path
) -> None:
    option = "--backend-config=tensorrt,version-compatible=true"
    assert read_json(engine / "repository.json")["models"][0]["server_options"] == []
    assert option not in (engine / "README.md").read_text()
    shutil.copytree(with_engine, tmp_path / "wide")
    manifest = read_manifest(tmp_path / "wide")
    entry = next(each for each in manifest["variants"] if each["name"] == "tensorrt-fp16")
    entry["engine"]["flags"]["version_compatible"] = True
    seal_artifact(tmp_path / "wide", manifest)
    folder = written(tmp_path / "wide", tmp_path / "shop", "fp32", "tensorrt-fp16")
    models = read_json(folder / "repository.json")["models"]
    assert [model["server_options"] for model in models] == [[], [option]]
    text = (folder / "README.md").read_text()
    command = text[text.index("docker run") : text.index("recpress verify")]
    assert command.endswith(f"--strict-readiness=true \\\n  {option}\n")
    assert "`shop-tensorrt-fp16` is version compatible" in text


@pytest.fixture
def damaged(exported: Path, tmp_path: Path) -> Path:
    """A repository of a package for this machine that is none."""
    shutil.copytree(exported, tmp_path / "artifact")
    folder = tmp_path / "artifact"
    (folder / "catalogue-1/aot.pt2").write_bytes(b"no package")
    manifest = read_manifest(folder)
    manifest["variants"].append(manifest["variants"][0] | {
        "name": "aot", "graph": "catalogue-1/aot.pt2", "files": ["catalogue-1/aot.pt2"],
        "device": "cpu", "compiled": aot.machine("cpu"),
    })  # fmt: skip
    seal_artifact(folder, manifest)
    return written(folder, tmp_path / "shop", "aot")


def test_a_package_that_cannot_be_loaded_is_an_input_error_unless_another_torch_made_it(
    damaged: Path,
) -> None:
    assert answered(damaged) == {"shop": "fp32"}
    with pytest.raises(InputError, match=rf"torch {torch.__version__[:4]}.* cannot load it"):
        verify_repository(damaged)
    change(damaged, lambda model: model["compiled"].update(torch="1.0"))
    assert "it was compiled with torch 1.0" in verify_repository(damaged).not_replayed["shop"]


def test_a_package_of_another_machine_is_told_with_the_reason(damaged: Path) -> None:
    change(damaged, lambda model: model["compiled"]["instructions"].append("avx1024"))
    assert "may use avx1024, which this CPU" in verify_repository(damaged).not_replayed["shop"]
    change(damaged, lambda model: model.pop("compiled"))
    assert "does not say what it was compiled for" in verify_repository(damaged).not_replayed["shop"]


@pytest.mark.slow
@pytest.mark.skipif(compiler_is_missing(), reason="no C++ compiler: apt-get install g++")
def test_packages_are_replayed_on_the_machine_that_compiled_them(
    sasrec: SequentialRecommender, prepared: Prepared, tmp_path: Path
) -> None:
    made = make_artifact(sasrec, tmp_path / "artifact", prepared, variants=("aot", "aot-bf16"))
    folder = written(made, tmp_path / "shop", "aot", "aot-bf16")
    assert answered(folder) == {"shop": "aot", "shop-aot-bf16": "aot-bf16"}
    found = verify_repository(folder)
    assert found.replayed == ("shop", "shop-aot-bf16") and found.max_score_difference < 1e-3
    model = folder / "models/shop/1/model.pt2"
    shutil.copyfile(folder / "models/shop-aot-bf16/1/model.pt2", model)
    seal(folder, read_json(folder / "repository.json"))
    with pytest.raises(GateError, match="'shop' is off by"):  # rounds what it says it does not
        verify_repository(folder)
