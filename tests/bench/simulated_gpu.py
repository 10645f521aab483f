"""What stands in for a GPU: events of its tracing."""

from collections.abc import Mapping
from typing import Any

TRACED: list[Mapping[str, Any]] = [
    {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "dur": 20.0, "args": {"bytes": 4096}},
    {"cat": "kernel", "name": "gemm", "dur": 1000.0, "args": {"stream": 7}},
    {"cat": "kernel", "name": "topk", "dur": 500.0, "args": {}},
    {"cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)", "dur": 40.0, "args": {"bytes": 64}},
    {"cat": "gpu_memset", "name": "Memset (Device)", "dur": 60.0, "args": {"bytes": 8}},
    {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)", "dur": 10.0, "args": {"bytes": 512}},
    {"cat": "gpu_user_annotation", "name": "Torch-Compiled Region", "dur": 9e9},
    {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 7e9},
    {"ph": "M", "name": "process_name"},
]
"""Of two calls: 1.6 ms of kernels and copies within the device, 4 KiB in, 512 bytes out."""
