"""Memory and streams of the host in the place of a GPU's, for `export.tensorrt`."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
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


class CpuStream:
    def __init__(self, device: "CpuDevice", handle: int) -> None:
        self.device, self.handle = device, handle

    def buffer(self, shape: tuple[int, ...], dtype: str) -> CpuBuffer:
        return CpuBuffer(shape, dtype)

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

    def machine(self) -> Machine:
        return self.here

    def stream(self) -> CpuStream:
        self.streams += 1
        return CpuStream(self, self.streams)
