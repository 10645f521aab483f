"""A stand-in for the package tensorrt: names and order of its calls, and every failure on demand.

It shows that files are called in the right order and that failures are told; its engine runs the ONNX in
onnxruntime on the CPU, so its answers are right and its speed means nothing. `FAIL` names the steps that
say no (False, None, -1, as the real ones do), `CALLS` is what was called.
"""

import ctypes
import json
import threading
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from export.half_check import rounded_in_float
from export.lint.supported import SINCE
from tests.fakes.tensorrt_names import (
    BuilderFlag,
    DataType,
    HardwareCompatibilityLevel,
    LayerInformationFormat,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    SerializationFlag,
    TensorIOMode,
)

__all__ = ("NetworkDefinitionCreationFlag",)
"""Names that only its user calls."""
__version__ = "11.4.0.106"
FAIL: set[str] = set()
CALLS: list[Any] = []
CAPTURING: set[int] = set()
"""Threads that are capturing."""
PLAN = b"FAKE"


def reset() -> None:
    FAIL.clear()
    CALLS.clear()
    CAPTURING.clear()


NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.INT64: np.int64,
    DataType.HALF: np.float16,
    DataType.BF16: np.uint16,
}
OF_ONNX = {
    TensorProto.FLOAT: DataType.FLOAT, TensorProto.INT64: DataType.INT64, TensorProto.INT32: DataType.INT32,
    TensorProto.FLOAT16: DataType.HALF, TensorProto.BFLOAT16: DataType.BF16,
}  # fmt: skip


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.constructed = True

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        """Pure virtual, as there: TensorRT calls what a subclass makes of it."""
        raise NotImplementedError("a logger has to say what becomes of a message")


def _no(step: str, logger: ILogger) -> bool:
    """Whether a step is to fail; then the logger hears why."""
    CALLS.append(step)
    if step in FAIL:
        logger.log(ILogger.Severity.ERROR, f"[fake] no {step}")
    return step in FAIL


class IProgressMonitor:
    def __init__(self) -> None:
        self.constructed = True


class IHostMemory(bytes):
    """Has the buffer protocol, as the real one."""


class Weights:
    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        self.type, self.ptr, self.count = type, ptr, count


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name, kind = value.name, value.type.tensor_type
        self.dtype = OF_ONNX[kind.elem_type]
        self.shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
        self.is_shape_tensor = False


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
        if _no("parse", self.logger):
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

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if _no("profile", self.logger):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if _no("timing cache", self.logger):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        if _no("builder", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        assert config.profiles or all(-1 not in network.get_input(i).shape for i in range(network.num_inputs))
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        going_on = all([monitor.step_complete("Building", step) for step in range(2)])
        monitor.phase_finish("Building")
        if _no("build", self.logger) or not going_on:
            return None
        if config.cache is not None and not config.cache.content:
            config.cache.content = b"timings"
        told = {
            "refittable": network.refittable if BuilderFlag.REFIT_INDIVIDUAL in config.flags else [],
            "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
            "host_code": BuilderFlag.VERSION_COMPATIBLE in config.flags,
            "profiles": [profile.shapes for profile in config.profiles],
            "flags": sorted(flag.name for flag in config.flags), "workspace": config.workspace,
            "level": config.builder_optimization_level, "hardware": config.hardware_compatibility_level.name,
        }  # fmt: skip
        CALLS.append(told)
        return _plan(told, network.model)


def _plan(told: dict[str, Any], model: onnx.ModelProto) -> IHostMemory:
    head = json.dumps(told).encode()
    return IHostMemory(PLAN + len(head).to_bytes(4, "little") + head + model.SerializeToString())


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        if _no("runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        if _no("deserialize", self.logger) or not serialized_engine.startswith(PLAN):
            return None
        size = int.from_bytes(serialized_engine[4:8], "little")
        told = json.loads(serialized_engine[8 : 8 + size])
        if told["host_code"] and not self.engine_host_code_allowed:
            return None
        return ICudaEngine(told, onnx.load_from_string(serialized_engine[8 + size :]), self.logger)


class ICudaEngine:
    def __init__(self, told: dict[str, Any], model: onnx.ModelProto, logger: ILogger) -> None:
        self.told, self.model, self.logger = told, model, logger
        self.values = [ITensor(value) for value in (*model.graph.input, *model.graph.output)]
        if "other outputs" in FAIL:
            self.values[-1].name = "other"
        self.num_io_tensors, self.num_layers = len(self.values), len(model.graph.node)
        self.device_memory_size_v2 = 1 << 20
        self.refittable = bool(told["refittable"])
        self.session: onnxruntime.InferenceSession | None = None

    def get_tensor_name(self, index: int) -> str:
        return self.values[index].name

    def _value(self, name: str) -> ITensor:
        return next(value for value in self.values if value.name == name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        given = {value.name for value in self.model.graph.input}
        return TensorIOMode.INPUT if name in given else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._value(name).dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._value(name).shape

    def create_engine_inspector(self) -> "EngineInspector":
        return EngineInspector(self)

    def create_execution_context(self) -> "IExecutionContext | None":
        return None if _no("context", self.logger) else IExecutionContext(self)

    def create_serialization_config(self) -> "ISerializationConfig":
        return ISerializationConfig()

    def serialize_with_config(self, config: "ISerializationConfig") -> IHostMemory | None:
        if _no("serialize", self.logger):
            return None
        kept = self.told["refittable"] if SerializationFlag.INCLUDE_REFIT in config.flags else []
        return _plan({**self.told, "refittable": kept}, self.model)

    def run(self, given: dict[str, Any]) -> list[Any]:
        if self.session is None:
            model = self.model
            if any(each.data_type == TensorProto.BFLOAT16 for each in model.graph.initializer):
                model = ir.to_proto(rounded_in_float(ir.from_proto(model), "bf16"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            if any(each.data_type == TensorProto.FLOAT8E4M3FN for each in model.graph.initializer):
                # else onnxruntime (1.32) drops a Relu in front of a quantization to 8-bit floats
                options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        answer: list[Any] = self.session.run(["top_items", "scores"], given)
        return answer


class ISerializationConfig:
    def __init__(self) -> None:
        self.flags: set[SerializationFlag] = set()

    def set_flag(self, flag: SerializationFlag) -> bool:
        self.flags.add(flag)
        return True


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        if "inspector" in FAIL:
            return "none"
        nodes = self.engine.model.graph.node
        if not self.engine.told["detailed"]:
            return json.dumps({"Layers": [node.name for node in nodes]})
        model = onnx.shape_inference.infer_shapes(self.engine.model)
        kinds = {each.name: each.data_type for each in model.graph.initializer}
        kinds |= {
            each.name: each.type.tensor_type.elem_type
            for each in (*model.graph.value_info, *model.graph.input)
        }
        made = {out: node for node in nodes for out in node.output}
        names = {1: "Float", 10: "Half", 16: "BFloat16", 3: "Int8", 17: "FP8", 7: "Int64"}

        def told_of(value: str) -> str:
            node = made.get(value)
            source = node.input[0] if node is not None and node.op_type == "DequantizeLinear" else value
            return names.get(kinds.get(source, 0), "N/A due to dynamic shapes")

        kind = {"MatMul": "gemm", "Gemm": "gemm", "Attention": "mha"}
        layers = [
            {
                "Name": node.name, "LayerType": kind.get(node.op_type, "kgen"), "TacticName": "",
                "Inputs": [{"Name": name, **_told(told_of(name))} for name in node.input if name],
            }
            for node in nodes
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "Bindings": []})


def _told(kind: str) -> dict[str, str]:
    """A type as the inspector of this version tells it."""
    if int(__version__.split(".")[0]) < 11:
        return {"Format/Datatype": kind}
    return {"Datatype": kind, "Format": "Row-major linear"}


class IExecutionContext:
    """Refuses to run before shapes and addresses are there, and to be captured before it has run."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.logger = engine, engine.logger
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if _no("set profile", self.logger):
            return False
        self.profile, self.shapes, self.ran = profile_index, {}, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "a shape before its profile"
        low, _, high = self.engine.told["profiles"][self.profile][name]
        fits = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if _no("shape", self.logger) or not fits:
            return False
        self.shapes[name], self.ran = tuple(shape), False
        return True

    def infer_shapes(self) -> list[str]:
        missing = [value.name for value in self.engine.model.graph.input if value.name not in self.shapes]
        return ["seen"] if "infer" in FAIL else missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if "output shape" in FAIL:
            return (-1, -1)
        return (self.shapes["items"][0], *self.engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self.infer_shapes(), "an address before the shapes"
        if _no("address", self.logger):
            return False
        self.addresses[name], self.ran = memory, False
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle != 0, "on the default stream"
        assert set(self.addresses) == {value.name for value in self.engine.values}, "without addresses"
        if threading.get_ident() in CAPTURING:
            assert self.ran, "captured before it has run once"
            return True
        if _no("execute", self.logger):
            return False
        given = {value.name: self._array(value.name) for value in self.engine.model.graph.input}
        for name, result in zip(("top_items", "scores"), self.engine.run(given), strict=True):
            self._array(name)[...] = result
        self.ran = True
        return True

    def _array(self, name: str) -> Any:
        kind = NUMPY[self.engine.get_tensor_dtype(name)]
        shape = self.shapes[name] if name in self.shapes else self.get_tensor_shape(name)
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, kind).reshape(shape)


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        assert engine.refittable
        self.engine, self.logger = engine, logger
        self.given: dict[str, Weights] = {}

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        old = {each.name: each for each in self.engine.model.graph.initializer}.get(name)
        fits = old is not None and OF_ONNX[old.data_type] == weights.type
        fits = fits and old is not None and int(np.prod(old.dims)) == weights.count
        if _no("set weights", self.logger) or not fits or name not in self.engine.told["refittable"]:
            return False
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return ["another"] if "missing weights" in FAIL else []

    def refit_cuda_engine(self) -> bool:
        if _no("refit", self.logger):
            return False
        for each in self.engine.model.graph.initializer:
            if each.name in self.given:
                weights = self.given[each.name]  # their memory is read here, as in the real one
                size = weights.count * np.dtype(NUMPY[weights.type]).itemsize
                content = ctypes.string_at(weights.ptr, size)
                each.ClearField("float_data")
                each.ClearField("int32_data")
                each.raw_data = content
        return True


def weights_of(plan: bytes, name: str) -> Any:
    """What a plan holds under a name."""
    size = int.from_bytes(plan[4:8], "little")
    model = onnx.load_from_string(plan[8 + size :])
    return numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == name))
