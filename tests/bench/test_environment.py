import platform
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from bench.environment import environment, usable_cores

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu avx2 avx512f amx_bf16

processor\t: 1
model name\t: Another
"""


def test_processor_facts_come_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO)
    found = environment(cpuinfo=file)
    assert found.cpu == "Some CPU @ 2.00GHz"
    assert found.isa == ["avx2", "avx512f", "amx_bf16"]
    assert found.cores == usable_cores() >= 1
    assert found.torch == metadata.version("torch")


def test_what_cannot_be_found_out_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", nothing)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(platform, "processor", lambda: "")
    found = environment(cpuinfo=tmp_path / "missing").model_dump(exclude_none=True)
    assert not {"torch", "onnxruntime", "recpress", "gpu", "driver", "cpu", "isa"} & set(found)
    assert {"python", "os", "cores"} <= set(found)


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        ("NVIDIA H200, 550.54\nNVIDIA H200, 550.54\n", 0, ("NVIDIA H200", "550.54")),
        ("no devices were found", 0, (None, None)),
        ("", 0, (None, None)),
        ("failed", 9, (None, None)),
    ],
)
def test_the_gpu_is_what_nvidia_smi_says_or_absent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    expected: tuple[str | None, str | None],
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    found = environment()
    assert (found.gpu, found.driver) == expected
