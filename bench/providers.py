"""Where onnxruntime runs the ONNX variants of artifacts: the list `onnxruntime:` of the stage `bench`.

A provider that is asked for runs, or the bench says what is missing: onnxruntime itself would fall back to
the CPU.
"""

from collections.abc import Sequence
from typing import Literal

from recommender.errors import InputError

OrtDevice = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[OrtDevice, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""The provider behind a device; `export.runtime.PROVIDERS` has the same first."""
PACKAGES: dict[OrtDevice, str] = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu tensorrt",
}
WHERE = "bench.onnxruntime"


def available() -> list[str]:
    """The providers that the installed onnxruntime was built with."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def missing(devices: Sequence[OrtDevice]) -> tuple[str, str] | None:
    """(which providers of these devices are not there, what brings them); None: all are there."""
    lacking = [device for device in devices if device != "cpu" and PROVIDERS[device] not in available()]
    if not lacking:
        return None
    names = " and no ".join(PROVIDERS[device] for device in lacking)
    packages = " ".join(dict.fromkeys(" ".join(PACKAGES[device] for device in lacking).split()))
    return f"the installed onnxruntime has no {names}", f"pip install {packages}"


def check_devices(devices: Sequence[OrtDevice], device: str) -> None:
    """Raise InputError where a provider is missing, or is for a GPU and the bench is for the processor."""
    on_gpu = [each for each in devices if each != "cpu"]
    if on_gpu and cuda_device(device) is None:
        raise InputError(
            f"onnxruntime cannot run variants on {on_gpu[0]} where the device is {device!r}: it needs CUDA",
            where=WHERE,
            fix="run with --device cuda, or leave it at cpu",
        )
    if (found := missing(devices)) is not None:
        what, fix = found
        raise InputError(what, where=WHERE, fix=f"{fix}, or leave {' and '.join(on_gpu)} out")


def cuda_device(device: str) -> str | None:
    """The GPU behind a device of a candidate, as CUDA calls it; None for the processor."""
    if device.startswith("cuda"):
        return device
    return "cuda" if device == "tensorrt" else None
