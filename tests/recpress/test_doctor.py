"""The doctor: what is wrong is found, and what mends it is said."""

import json
import sys
from pathlib import Path

import pytest

from export.tensorrt import MissingError
from recpress import doctor
from recpress.cli.app import main
from tests.fakes import tensorrt
from tests.fakes.device import CpuDevice


def finding(what: str) -> doctor.Finding:
    return next(each for each in doctor.examine() if each.what == what)


def test_a_sound_installation_exits_0_with_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    captured = capsys.readouterr()
    found = {each["what"]: each for each in json.loads(captured.out.splitlines()[-1])}
    assert {"python", "torch", "onnxruntime", "bitsandbytes", "tensorrt", "GPU", "RECPRESS_DATA"} <= set(
        found
    )
    assert found["torch"]["state"] == "ok"
    assert "cache folder" in captured.err


def test_a_missing_package_is_found_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package"))
    assert main(["doctor"]) == 1
    assert "pip install no-such-package" in capsys.readouterr().err


def test_an_optional_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_package": ("what it does", "quantize")})
    assert finding("no_such_package").mend == 'pip install "recpress[quantize]"'
    assert finding("no_such_package").state == "absent"


def test_a_wrong_data_root_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert finding("RECPRESS_DATA").state == "absent"
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path / "none"))
    assert finding("RECPRESS_DATA").state == "broken"
    (tmp_path / "shop").mkdir()
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path))
    assert (finding("RECPRESS_DATA").state, "shop" in finding("RECPRESS_DATA").detail) == ("ok", True)


def test_a_cache_that_cannot_be_written_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECPRESS_CACHE", str(tmp_path / "file"))
    assert finding("cache folder").state == "broken"
    assert "RECPRESS_CACHE" in finding("cache folder").mend


def test_tensorrt_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = doctor._tensorrt()
    assert found.state == "absent" and "pip install --extra-index-url https://pypi.nvidia.com" in found.mend


@pytest.mark.parametrize(
    ("version", "gpu", "state", "detail"),
    [
        ("9.3.0", True, "broken", "TensorRT 9.3.0 is not supported"),
        ("11.4.0", False, "absent", "11.4.0, but torch sees no CUDA device"),
        ("11.4.0", True, "ok", "11.4.0.106 on Fake H200, compute capability 9.0"),
    ],
)
def test_tensorrt_is_told_with_its_gpu(
    monkeypatch: pytest.MonkeyPatch, version: str, gpu: bool, state: str, detail: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt, "__version__", "11.4.0.106" if version == "11.4.0" and gpu else version)

    def missing() -> CpuDevice:
        raise MissingError("torch sees no CUDA device", "get one")

    monkeypatch.setattr("export.tensorrt.open_device", CpuDevice if gpu else missing)
    found = doctor._tensorrt()
    assert (found.state, detail in found.detail) == (state, True)
