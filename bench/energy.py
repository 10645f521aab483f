"""Energy from the counters of the machine: RAPL for processors, NVML for NVIDIA GPUs.

RAPL (powercap) counts a whole processor package, NVML a whole GPU: not one process, and neither the memory
nor the rest of the machine. Nothing is subtracted, so what the machine draws when idle is part of every
number; on a machine that does something else besides, the numbers mean nothing. The counters move in steps
(RAPL 1 ms, NVML up to 100 ms), so a single call cannot be measured: read before and after a block of calls of
one candidate.
"""

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from bench.report.schema import Energy

POWERCAP = Path("/sys/class/powercap")

ZONE = re.compile(r"[a-z]+-rapl(-mmio)?:\d+")
"""Folder of a zone; parts of it (cores, graphics: `intel-rapl:0:0`) are counted in it already."""

MIN_SECONDS = 1.0
"""A block of work has to be this long, or the steps of the counters would show."""

Reading = tuple[int, ...]
Source = Literal["rapl", "nvml"]


class EnergyMeter(Protocol):
    """A counter that is read before and after the work."""

    @property
    def source(self) -> Source:
        """Where the numbers come from."""
        ...

    def read(self) -> Reading:
        """What the counters say now. Raises one of `UNREADABLE` when they cannot be read."""
        ...

    def joules(self, before: Reading, after: Reading) -> float:
        """Energy between two readings."""
        ...


@dataclass(frozen=True)
class RaplMeter:
    """The packages of the machine, summed."""

    counters: tuple[Path, ...]
    ranges: tuple[int, ...]  # microjoules at which each counter starts again at 0
    source: Source = "rapl"

    def read(self) -> Reading:
        """Microjoules of each package."""
        return tuple(int(counter.read_text()) for counter in self.counters)

    def joules(self, before: Reading, after: Reading) -> float:
        """Sum over packages; each counter may have wrapped around once (at 100 W: minutes apart)."""
        pairs = zip(before, after, self.ranges, strict=True)
        return sum(end - start if end >= start else end - start + span for start, end, span in pairs) / 1e6


@dataclass(frozen=True)
class NvmlMeter:
    """One GPU; Volta or later."""

    nvml: ModuleType
    handle: Any
    source: Source = "nvml"

    def read(self) -> Reading:
        """Millijoules since the driver was loaded."""
        try:
            return (int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)),)
        except self.nvml.NVMLError as error:
            raise NoMeterError(f"NVML says: {error}") from error

    def joules(self, before: Reading, after: Reading) -> float:
        """Energy between two readings."""
        return (after[0] - before[0]) / 1e3


class NoMeterError(Exception):
    """There is no counter; the text says why, as the end of a sentence."""


UNREADABLE = (NoMeterError, OSError, ValueError)
"""What reading a counter may raise."""


def reason(error: Exception) -> str:
    """Why a counter cannot be read, as the end of a sentence; `error` is one of `UNREADABLE`."""
    match error:
        case OSError():
            said = error.strerror or error
            return f"{error.filename or 'the counter'} cannot be read ({said}); it may be root's alone"
        case ValueError():
            return f"a counter holds no number ({error})"
    return str(error)


def meter(
    device: str, *, root: Path = POWERCAP, note: Callable[[str], None] | None = None
) -> EnergyMeter | None:
    """The counter of a device (`cpu`, `cuda`, `cuda:1`); None where there is none that can be read.

    `note` is then called with the reason, a sentence for the report.
    """
    try:
        found = _nvml(device) if device.startswith("cuda") else _rapl(root)
        found.read()  # the files may be there and still be closed to us
    except UNREADABLE as error:
        if note is not None:
            note(f"Energy on {device} was not measured: {reason(error)}.")
        return None
    return found


def energy(
    joules: float, seconds: float, users: int, *, source: Source, load: Literal["full", "real"], batch: int
) -> Energy | None:
    """The numbers of the report; None when the block was too short or the counter did not move."""
    if joules <= 0 or users <= 0 or seconds < MIN_SECONDS:
        return None
    return Energy(
        source=source,
        load=load,
        batch=batch,
        watts=joules / seconds,
        joules_per_user=joules / users,
        users_per_watt_hour=3600 * users / joules,
    )


def _rapl(root: Path) -> RaplMeter:
    """One counter per package.

    A package may be listed twice (through MSR and through MMIO); `psys` holds packages and more. Both would
    count twice, so zones are chosen by what they are called, and each name once.
    """
    packages: dict[str, Path] = {}
    zones = root.glob("*rapl*:*") if root.is_dir() else ()
    for zone in sorted(zones, key=lambda zone: ("mmio" in zone.name, zone.name)):
        if ZONE.fullmatch(zone.name) and (zone / "name").is_file():
            name = (zone / "name").read_text().strip()
            if name.startswith("package"):
                packages.setdefault(name, zone)
    if not packages:
        raise NoMeterError(f"no processor package is listed in {root} (virtual machines hide it)")
    return RaplMeter(
        counters=tuple(zone / "energy_uj" for zone in packages.values()),
        ranges=tuple(int((zone / "max_energy_range_uj").read_text()) for zone in packages.values()),
    )


def _nvml(device: str) -> NvmlMeter:
    """The GPU that CUDA calls by this number, through the package `pynvml` if that is installed."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise NoMeterError("the package pynvml is not installed (pip install nvidia-ml-py)") from error
    try:
        pynvml.nvmlInit()
        return NvmlMeter(pynvml, _handle(pynvml, int(device.partition(":")[2] or 0)))
    except pynvml.NVMLError as error:
        raise NoMeterError(f"NVML says: {error}") from error


def _handle(nvml: Any, index: int) -> Any:
    """The handle of CUDA's device `index`, which need not be NVML's: CUDA hides devices and reorders them."""
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    if visible and index >= len(visible):
        raise NoMeterError(f"CUDA_VISIBLE_DEVICES has no device {index}")
    wanted = visible[index] if visible else str(index)
    if not wanted.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(wanted)
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    names = {str(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    if len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise NoMeterError(
            "GPUs differ and CUDA may number them in another order; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    if int(wanted) >= len(handles):
        raise NoMeterError(f"NVML has no device {wanted}")
    return handles[int(wanted)]
