"""Engines of the stand-in for TensorRT: plans, contexts that run the ONNX in onnxruntime, refits."""

import ctypes
import json
import threading
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, numpy_helper

from export.half_check import rounded_in_float
from tests.fakes.tensorrt_inspector import EngineInspector
from tests.fakes.tensorrt_names import (
    DataType,
    ExecutionContextAllocationStrategy,
    SerializationFlag,
    TensorIOMode,
)
from tests.fakes.tensorrt_steps import CAPTURING, FAIL, ILogger, refuses

PLAN = b"FAKE"
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


def plan_of(told: dict[str, Any], model: onnx.ModelProto) -> IHostMemory:
    head = json.dumps(told).encode()
    return IHostMemory(PLAN + len(head).to_bytes(4, "little") + head + model.SerializeToString())


class ICudaEngine:
    def __init__(self, told: dict[str, Any], model: onnx.ModelProto, logger: ILogger, version: str) -> None:
        self.told, self.model, self.logger, self.version = told, model, logger, version
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

    def create_engine_inspector(self) -> EngineInspector | None:
        return None if refuses("made inspector", self.logger) else EngineInspector(self)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> "IExecutionContext | None":
        return None if refuses("context", self.logger) else IExecutionContext(self, strategy)

    def create_serialization_config(self) -> "ISerializationConfig | None":
        return None if refuses("serialization config", self.logger) else ISerializationConfig()

    def serialize_with_config(self, config: "ISerializationConfig") -> IHostMemory | None:
        if refuses("serialize", self.logger):
            return None
        kept = self.told["refittable"] if SerializationFlag.INCLUDE_REFIT in config.flags else []
        return plan_of({**self.told, "refittable": kept}, self.model)

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


class IExecutionContext:
    """Refuses to run before shapes and addresses are there, and to be captured before it has run."""

    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine, self.logger = engine, engine.logger
        self.own = strategy == ExecutionContextAllocationStrategy.STATIC
        self.memory = (0, 0)
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if refuses("set profile", self.logger):
            return False
        self.profile, self.shapes, self.ran = profile_index, {}, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "a shape before its profile"
        low, _, high = self.engine.told["profiles"][self.profile][name]
        fits = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if refuses("shape", self.logger) or not fits:
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
        if refuses("address", self.logger):
            return False
        self.addresses[name], self.ran = memory, False
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        """1 KiB for each user: of its shapes where the engine can be resized, else of the largest profile."""
        assert not self.own and not self.infer_shapes(), "a size before the shapes"
        largest = max(profile["items"][2][0] for profile in self.engine.told["profiles"])
        return 1024 * (self.shapes["items"][0] if self.engine.told["resized"] else largest)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert not self.own
        self.memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle != 0, "on the default stream"
        assert set(self.addresses) == {value.name for value in self.engine.values}, "without addresses"
        lacking = not self.own and self.memory[1] < self.update_device_memory_size_for_shapes()
        assert not lacking and (self.own or self.memory[0]), "without scratch memory"
        if threading.get_ident() in CAPTURING:
            assert self.ran, "captured before it has run once"
            return True
        if refuses("execute", self.logger):
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
        if refuses("set weights", self.logger) or not fits or name not in self.engine.told["refittable"]:
            return False
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return ["another"] if "missing weights" in FAIL else []

    def refit_cuda_engine(self) -> bool:
        if refuses("refit", self.logger):
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
