"""A stand-in for the package tensorrt: names and order of its calls, and every failure on demand.

It shows that files are called in the right order and that failures are told; its engine runs the ONNX in
onnxruntime on the CPU, so its answers are right and its speed means nothing. `FAIL` names the steps that
say no (False, None, -1, as the real ones do), `CALLS` is what was called.
"""

import json
from typing import Any

import onnx
from onnx import helper

from export.lint.supported import SINCE
from tests.fakes.tensorrt_engine import (
    PLAN,
    ICudaEngine,
    IHostMemory,
    ITensor,
    Refitter,
    Weights,
    plan_of,
    weights_of,
)
from tests.fakes.tensorrt_names import (
    BuilderFlag,
    DataType,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    LayerInformationFormat,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    PreviewFeature,
    ProfilingVerbosity,
    SerializationFlag,
    TensorIOMode,
)
from tests.fakes.tensorrt_steps import CALLS, CAPTURING, FAIL, ILogger, refuses, reset

__all__ = (
    "CAPTURING",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "LayerInformationFormat",
    "NetworkDefinitionCreationFlag",
    "Refitter",
    "SerializationFlag",
    "TensorIOMode",
    "Weights",
    "reset",
    "weights_of",
)
"""Names that only its user calls."""
__version__ = "11.4.0.106"


class IProgressMonitor:
    def __init__(self) -> None:
        self.constructed = True


class INetworkDefinition:
    model: onnx.ModelProto

    def __init__(self, flags: int) -> None:
        assert flags == 1, "not strongly typed"
        self.refittable: list[str] = []

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.model.graph.input[index])

    def mark_weights_refittable(self, name: str) -> bool:
        known = name in {each.name for each in self.model.graph.initializer}
        if "mark" in FAIL or not known:
            return False
        self.refittable.append(name)
        return True


class ParserError:
    def __init__(self, index: int, node: onnx.NodeProto, why: str) -> None:
        self.index, self.asked, self.why = index, node, why

    def node(self) -> int:
        return self.index

    def node_name(self) -> str:
        return self.asked.name

    def node_operator(self) -> str:
        return self.asked.op_type

    def desc(self) -> str:
        return self.why


def _refused(node: onnx.NodeProto) -> str:
    """Why this version's parser does not take a node; "" where it does."""
    here = tuple(int(part) for part in __version__.split("."))
    if node.op_type in SINCE and here < SINCE[node.op_type]:
        return f"no importer registered for {node.op_type}"
    given = {each.name for each in node.attribute} if node.op_type == "Attention" else set()
    return "setting softmax_precision is not supported" if "softmax_precision" in given else ""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self.network, self.logger = network, logger
        asked = helper.make_node("NonZero", [], [], name="node_x")
        self.errors = [ParserError(3, asked, "unsupported")] if "parse" in FAIL else []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse_from_file(self, model: str) -> bool:
        if refuses("parse", self.logger):
            return False
        self.network.model = onnx.load(model)
        for index, node in enumerate(self.network.model.graph.node):
            if why := _refused(node):
                self.errors.append(ParserError(index, node, why))
        return not self.errors


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("min <= opt <= max does not hold")
        self.shapes[input] = (min, opt, max)

    def __bool__(self) -> bool:
        return "empty profile" not in FAIL


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content)


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.flags = logger, {BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None
        self.workspace: int | None = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: Any = None
        self.previews: set[PreviewFeature] = set()

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        assert enable
        self.previews.add(feature)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if refuses("profile", self.logger):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if refuses("made timing cache", self.logger) else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if refuses("timing cache", self.logger):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return None if "kept cache" in FAIL else self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        if refuses("builder", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        return None if refuses("network", self.logger) else INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig | None:
        return None if refuses("config", self.logger) else IBuilderConfig(self.logger)

    def create_optimization_profile(self) -> IOptimizationProfile | None:
        return None if refuses("made profile", self.logger) else IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        assert config.profiles or all(-1 not in network.get_input(i).shape for i in range(network.num_inputs))
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        going_on = all([monitor.step_complete("Building", step) for step in range(2)])
        monitor.phase_finish("Building")
        if refuses("build", self.logger) or not going_on:
            return None
        if config.cache is not None and not config.cache.content:
            config.cache.content = b"timings"
        told = {
            "refittable": network.refittable if BuilderFlag.REFIT_INDIVIDUAL in config.flags else [],
            "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
            "host_code": BuilderFlag.VERSION_COMPATIBLE in config.flags,
            "profiles": [profile.shapes for profile in config.profiles],
            "flags": sorted(flag.name for flag in config.flags), "workspace": config.workspace,
            "resized": PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10 in config.previews,
            "level": config.builder_optimization_level, "hardware": config.hardware_compatibility_level.name,
        }  # fmt: skip
        CALLS.append(told)
        return plan_of(told, network.model)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        if refuses("runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if refuses("deserialize", self.logger) or not serialized_engine.startswith(PLAN):
            return None
        size = int.from_bytes(serialized_engine[4:8], "little")
        told = json.loads(serialized_engine[8 : 8 + size])
        if told["host_code"] and not self.engine_host_code_allowed:
            return None
        model = onnx.load_from_string(serialized_engine[8 + size :])
        return ICudaEngine(told, model, self.logger, __version__)
