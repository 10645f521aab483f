"""Memory and streams of the host in the place of a GPU's, for `export.tensorrt`."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.tensorrt import Machine
from tests.fakes import tensorrt

HERE = Machine("11.4.0.106", "13.0", "580.65.06", "Fake H200", "9.0")


class CpuBuffer:
    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.host: Any = np.full(shape, 99, dtype)  # memory is not zero by itself
        self._device = np.full(shape, 99, dtype)
        self.address = self._device.ctypes.data

    def upload(self) -> None:
        self._device[...] = self.host

    def download(self) -> None:
        self.host[...] = self._device


class CpuScratch:
    def __init__(self, size: int) -> None:
        self._memory = np.zeros(max(1, size), np.uint8)
        self.address = self._memory.ctypes.data


class CpuStream:
    def __init__(self, device: "CpuDevice", handle: int) -> None:
        self.device, self.handle = device, handle

    def buffer(self, shape: tuple[int, ...], dtype: str) -> CpuBuffer:
        return CpuBuffer(shape, dtype)

    def scratch(self, size: int) -> CpuScratch:
        self.device.scratch.append(size)
        return CpuScratch(size)

    def synchronize(self) -> None:
        tensorrt.CALLS.append("synchronize")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        thread = threading.get_ident()
        tensorrt.CAPTURING.add(thread)
        work()
        tensorrt.CAPTURING.remove(thread)
        self.device.captured += 1
        return work


@dataclass
class CpuDevice:
    here: Machine = HERE
    streams: int = 0
    captured: int = 0
    scratch: list[int] = field(default_factory=list)

    def machine(self) -> Machine:
        return self.here

    def stream(self) -> CpuStream:
        self.streams += 1
        return CpuStream(self, self.streams)
