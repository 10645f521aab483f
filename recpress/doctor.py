"""What is installed, what is missing, and what mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recommender.errors import InputError

State = Literal["ok", "missing", "broken", "absent"]
"""`missing` and `broken` stop some recipes; `absent` is optional."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    state: State
    detail: str
    mend: str = ""


NEEDED = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optimum",
    "polars",
    "plotly",
)
OPTIONAL = {
    "bitsandbytes": ("8- and 4-bit weights", "quantize"),
    "faiss": ("approximate search of the items of an artifact", "ann"),
    "tritonclient": ("golden requests to a server over gRPC", "triton"),
}


def examine() -> list[Finding]:
    """All findings, in the order in which they are worth reading."""
    machine = [_compiler(), _gpu(), _driver(), _tensorrt()]
    found = [_python(), *_needed(), *_optional(), *machine, *_onnxruntime()]
    return [*found, _data(), _cache(), _disk()]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _needed() -> Iterator[Finding]:
    for name in NEEDED:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", "", f"pip install {name}, or reinstall recpress")


def _optional() -> Iterator[Finding]:
    for name, (what, extra) in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Finding(name, "absent", f"optional: {what}", f'pip install "recpress[{extra}]"')
        else:
            yield Finding(name, "ok", _version(name))


def _version(module: str) -> str:
    """Of the distribution that brings a module (faiss comes as faiss-cpu)."""
    return importlib.metadata.version(importlib.metadata.packages_distributions().get(module, [module])[0])


def _compiler() -> Finding:
    from export.aot_build import NO_COMPILER, require_compiler

    try:
        return Finding("C++ compiler", "ok", require_compiler())
    except InputError:
        what = "optional: export variants aot, aot-bf16 (to run them takes none)"
        return Finding("C++ compiler", "absent", what, NO_COMPILER)


def _gpu() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("GPU", "broken", f"torch cannot be imported: {error}", "reinstall torch")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("GPU", "ok", f"{names} (CUDA {torch.version.cuda})")
    if torch.version.cuda is None:
        return Finding(
            "GPU", "absent", "this torch is a CPU build", "install a CUDA build of torch to train on a GPU"
        )
    return Finding("GPU", "absent", "torch sees no CUDA device", "check the driver with nvidia-smi")


def _driver() -> Finding:
    from export.tensorrt import DRIVER, driver

    version = driver()
    if version:
        return Finding("NVIDIA driver", "ok", version)
    return Finding("NVIDIA driver", "absent", f"{DRIVER} is not there", "needed for a GPU only")


def _tensorrt() -> Finding:
    from export import tensorrt

    what = "optional: engines for NVIDIA GPUs (export.variants: [tensorrt-fp16])"
    if importlib.util.find_spec("tensorrt") is None:
        return Finding("tensorrt", "absent", what, tensorrt.INSTALL)
    try:
        version = tensorrt.installed()
    except tensorrt.MissingError as error:
        return Finding("tensorrt", "broken", error.what, error.fix)
    try:
        machine = tensorrt.open_device().machine()
    except tensorrt.MissingError as error:
        return Finding("tensorrt", "absent", f"{version}, but {error.what}", error.fix)
    return Finding("tensorrt", "ok", f"{version} on {machine.gpu}, compute capability {machine.capability}")


def _onnxruntime() -> Iterator[Finding]:
    try:
        import onnxruntime
    except ImportError as error:
        yield Finding("onnxruntime providers", "broken", str(error), "reinstall onnxruntime")
        return
    yield Finding("onnxruntime providers", "ok", ", ".join(onnxruntime.get_available_providers()))


def _data() -> Finding:
    named = os.environ.get("RECPRESS_DATA")
    if not named:
        return Finding(
            "RECPRESS_DATA", "absent", "not set: named sources other than synthetic are not found",
            "export RECPRESS_DATA=/folder/of/data/sets",
        )  # fmt: skip
    if not Path(named).is_dir():
        return Finding("RECPRESS_DATA", "broken", f"{named} is no folder", "correct it, or make the folder")
    sets = sorted(folder.name for folder in Path(named).iterdir() if folder.is_dir())
    return Finding("RECPRESS_DATA", "ok", f"{named}: {', '.join(sets) or 'empty'}")


def _cache() -> Finding:
    from recommender.data.prepare import default_cache

    folder = default_cache()
    above = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            return Finding("cache folder", "ok", str(folder))
    except OSError as error:
        mend = "set RECPRESS_CACHE to a folder that can be written"
        return Finding("cache folder", "broken", f"{folder}: {error.strerror}", mend)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free > 1e9:
        return Finding("disk", "ok", f"{free / 1e9:.0f} GB free here")
    return Finding("disk", "broken", f"{free / 1e6:.0f} MB free here", "make room; a run needs about 1 GB")
