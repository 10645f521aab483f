"""Where a measurement was made; what cannot be found out is absent."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from bench.report.schema import Environment

PACKAGES = ("recpress", "torch", "transformers", "onnxruntime", "numpy")

ISA = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo that matter to matrix products."""

CPUINFO = Path("/proc/cpuinfo")


def environment(*, cpuinfo: Path = CPUINFO) -> Environment:
    """Versions, processor and accelerator of this machine."""
    facts = _cpu_facts(cpuinfo)
    gpu, driver = _gpu()
    return Environment(
        python=platform.python_version(),
        os=platform.platform(terse=True),
        cpu=facts.get("model name") or facts.get("Processor") or platform.processor() or None,
        isa=[flag for flag in ISA if flag in _flags(facts)] or None,
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        gpu=gpu,
        driver=driver,
        **{name: _version(name) for name in PACKAGES},
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_facts(cpuinfo: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _flags(facts: dict[str, str]) -> set[str]:
    return set((facts.get("flags") or facts.get("Features") or "").split())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpu() -> tuple[str | None, str | None]:
    """(name, driver) of the first NVIDIA GPU, from nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        name, driver = answer.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None, None
    return name.strip(), driver.strip()
