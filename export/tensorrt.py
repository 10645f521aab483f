"""Build TensorRT engines and run them: one file, right on TensorRT 10.12 to 11.x.

A copy of it, `runtime_tensorrt.py`, lies beside `runtime.py` in every artifact that holds an engine, so it
imports only the standard library and numpy; TensorRT, and torch for memory, streams and CUDA graphs, are
imported where they are used. Types come from the ONNX alone: the network is strongly typed, and what the
engine computes in is read back from its inspector. TensorRT tells most failures by False or None; here each
of them is an `EngineError`.
"""

import json
import logging
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tensorrt as trt

INSTALL = (
    "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13 (the extra recpress[tensorrt]), and "
    "a CUDA build of torch, on a machine with an NVIDIA GPU; or open another variant"
)
DRIVER = Path("/proc/driver/nvidia/version")
OLDEST, TOO_NEW = (10, 12), (12,)
REQUIRED = {"fp32": 1.0, "fp16": 0.75, "bf16": 0.75, "int8": 0.4, "fp8": 0.4}
"""Share of the matrix products that have to read the promised type: of a half engine the last product stays
in float32, of an 8-bit one also the two products inside of each attention."""
PRODUCT = re.compile(r"gemm|matmul|matrixmultiply|matrix_multiply|fullyconnected|mha|attention|conv(?!er)")
"""In the lower-case type or tactic of a layer; not in conversions."""
FUSED_PRODUCT = re.compile(r"__myl_\w*?(?:Fc|Gemm|Bmm|MatMul|Mha)(?![a-z])")
"""In the name or tactic of a layer that TensorRT's compiler fused: `__myl_FcAddCast_myl0_5`."""
SPARSE = re.compile(r"sparse|spmma")
"""In the lower-case tactic of a layer whose kernel skips the zeros of 2:4 weights."""
TYPES = {"bf16": r"bf16|bfloat", "fp16": r"half|fp16|float16", "fp8": r"fp8|e4m3|float8", "int8": r"int8"}
"""What the inspector calls a type, in any case; whatever else is a float is float32."""
TACTICS = {"bf16": "_bf16", "fp16": "_f16", "fp8": "_e4m3", "int8": "_i8", "fp32": "_f32|tf32"}
DTYPES = {"items": "INT64", "seen": "INT64", "top_items": "INT64", "scores": "FLOAT"}
KINDS = {"INT64": "int64", "FLOAT": "float32"}
_log = logging.getLogger("recpress.tensorrt")

Made = TypeVar("Made")
Check = Callable[[Path], None]
Progress = Callable[[str, Mapping[str, Any]], None]


class EngineError(ValueError):
    """What could not be done, and what mends it."""

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(f"{what}; {fix}")


class MissingError(EngineError):
    """No TensorRT, or no GPU, on this machine."""


class UnfitError(EngineError):
    """An engine that was built for another machine."""


class ImpreciseError(EngineError):
    """An engine that computes in other types than it promises."""


class Machine(NamedTuple):
    """What an engine is tied to; texts, "" where it cannot be told."""

    tensorrt: str
    cuda: str
    driver: str
    gpu: str
    capability: str  # "9.0"


class Buffer(Protocol):
    """A tensor on the device, and page-locked memory of the host that it is copied from or to."""

    host: NDArray[Any]
    address: int

    def upload(self) -> None:
        """Start to copy from the host, on the stream."""

    def download(self) -> None:
        """Start to copy to the host, on the stream."""


class Scratch(Protocol):
    """Memory of the device alone, for what an engine computes in between; there as long as the object is."""

    address: int


class Stream(Protocol):
    """A stream of the device that is not the default one."""

    handle: int

    def scratch(self, size: int) -> Scratch:
        """`size` bytes. Raises EngineError where the device has no more."""

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Memory of its own."""

    def synchronize(self) -> None:
        """Wait until all is done."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` starts, as a CUDA graph; calling it starts all of it at once."""


class Device(Protocol):
    """The GPU, or what stands for it in a test."""

    def machine(self) -> Machine:
        """What engines that are built here are tied to."""

    def stream(self) -> Stream:
        """A new stream."""


@dataclass(frozen=True)
class Asked:
    """How an engine is built. Profiles: (smallest, tuned for, largest) batch; every other axis is fixed."""

    profiles: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (1, 16, 64))
    workspace_bytes: int | None = None  # None: what the device has
    optimization_level: int = 3
    timing_cache: Path | None = None  # a folder
    hardware: str = "none"  # ampere-plus, same-compute-capability
    version_compatible: bool = False
    refittable: tuple[str, ...] = ()  # names of weights
    sparse: bool = False
    tf32: bool = False


def installed() -> str:
    """The version of TensorRT. Raises MissingError where it cannot be imported or is out of 10.12 to 11.x."""
    try:
        import tensorrt as trt
    except Exception as error:  # also what its libraries raise while they are loaded
        raise MissingError(f"TensorRT cannot be imported ({error})", INSTALL) from error
    if not OLDEST <= _numbers(trt.__version__) < TOO_NEW:
        raise MissingError(f"TensorRT {trt.__version__} is not supported (10.12 to 11.x are)", INSTALL)
    return trt.__version__


def driver(file: Path = DRIVER) -> str:
    """The version of NVIDIA's driver, as the kernel tells it; "" where it does not."""
    told = re.search(r"\s(\d+\.\d+[.\d]*)\s", file.read_text()) if file.is_file() else None
    return told[1] if told else ""


def open_device() -> Device:
    """The GPU of this machine. Raises MissingError where TensorRT, torch, or a GPU is missing."""
    return _Cuda(installed())


def build(
    onnx: Path,
    plan: Path,
    asked: Asked,
    *,
    precision: str,
    check: Check,
    device: Device,
    progress: Progress = lambda event, values: None,
) -> dict[str, Any]:
    """Write the engine of a graph to `plan`, prove its precision, and tell all that its manifest has to say.

    `check` is called with the graph before anything else, and raises where it is not fit for TensorRT.
    Nothing is written unless everything has passed, but the timing cache. Raises EngineError naming the step
    that failed, ImpreciseError where the engine computes in other types than `precision`.
    """
    import tensorrt as trt

    check(onnx)
    machine, started = device.machine(), time.perf_counter()
    logger = _logger()
    builder = _made(trt.Builder, logger)
    network, keep = _parsed(builder, onnx, logger, asked.refittable)
    config = _configured(_there(builder.create_builder_config(), "making a builder config", logger), asked)
    _add_profiles(builder, network, config, asked.profiles, logger)
    cache = _open_cache(config, asked, machine)
    told = config.progress_monitor = _monitor(progress)
    memory = builder.build_serialized_network(network, config)
    if told.stopped is not None:
        raise told.stopped
    if memory is None:
        raise _refused("building the engine", logger, "see the messages above; try a larger workspace_bytes")
    timing = _close_cache(config, *cache)
    content = bytes(memory)
    engine = _deserialized(content, logger, host_code=asked.version_compatible)
    facts = _described(engine)
    layers = _inspected(engine, logger)
    proof = prove(layers, precision)
    _write(plan, content)
    del keep  # the parser owns the weights until here
    return {
        "machine": machine._asdict(),
        "profiles": [list(profile) for profile in asked.profiles],
        "flags": _flags(asked),
        "onnx_sha256": sha256(onnx.read_bytes()).hexdigest(),
        "timing_cache": timing,
        "precision_proof": proof,
        "sparse_layers": sparse_layers(layers),
        "seconds": time.perf_counter() - started,
        **facts,
    }


def _flags(asked: Asked) -> dict[str, Any]:
    return {
        "workspace_bytes": asked.workspace_bytes, "optimization_level": asked.optimization_level,
        "hardware": asked.hardware, "version_compatible": asked.version_compatible,
        "refittable": list(asked.refittable), "sparse": asked.sparse, "tf32": asked.tf32,
    }  # fmt: skip


def _parsed(
    builder: "trt.Builder", onnx: Path, logger: "trt.ILogger", refittable: Sequence[str]
) -> tuple["trt.INetworkDefinition", "trt.OnnxParser"]:
    """The network of a graph, and its parser. From the path, so that weights beside the graph are found."""
    import tensorrt as trt

    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _there(builder.create_network(flags), "making a network", logger)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [f"node {e.node()} {e.node_name()!r} ({e.node_operator()}): {e.desc()}" for e in errors]
        raise EngineError(
            f"TensorRT {trt.__version__} cannot read {onnx.name}: {'; '.join(told) or 'no reason given'}",
            f"look for these operators with: recpress lint {onnx.name} --target tensorrt",
        )
    for name in refittable:
        if not network.mark_weights_refittable(name):
            raise _refused(f"marking the weights {name} as refittable", logger, "leave `refittable` out")
    return network, parser


def _configured(config: "trt.IBuilderConfig", asked: Asked) -> "trt.IBuilderConfig":
    import tensorrt as trt

    flags = trt.BuilderFlag
    if asked.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, asked.workspace_bytes)
    config.builder_optimization_level = asked.optimization_level
    # so that a lane asks for the memory of its batch size, not of the largest one
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells no types
    level = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = {
        "none": level.NONE,
        "ampere-plus": level.AMPERE_PLUS,
        "same-compute-capability": level.SAME_COMPUTE_CAPABILITY,
    }[asked.hardware]
    if not asked.tf32:
        config.clear_flag(flags.TF32)  # on by default
    wanted = {
        flags.VERSION_COMPATIBLE: asked.version_compatible,
        flags.REFIT_INDIVIDUAL: bool(asked.refittable),
        flags.SPARSE_WEIGHTS: asked.sparse,
    }
    for flag in (flag for flag, on in wanted.items() if on):
        config.set_flag(flag)
    return config


def _add_profiles(
    builder: "trt.Builder",
    network: "trt.INetworkDefinition",
    config: "trt.IBuilderConfig",
    profiles: Sequence[tuple[int, int, int]],
    logger: "trt.ILogger",
) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for value in inputs:
        loose = [axis for axis, size in enumerate(value.shape) if size == -1 and axis > 0]
        if loose or value.is_shape_tensor:
            raise EngineError(
                f"axis {loose[0] if loose else 0} of the input {value.name} is dynamic and in no profile",
                "fix it in the graph (`tensorrt.length`, `tensorrt.seen`): only the batch may vary",
            )
    for number, sizes in enumerate(profiles):
        profile = _there(builder.create_optimization_profile(), "making a profile", logger)
        try:
            for value in inputs:
                profile.set_shape(value.name, *((size, *tuple(value.shape)[1:]) for size in sizes))
        except ValueError as error:
            raise EngineError(
                f"profile {number} {sizes} is refused: {error}", "mend `tensorrt.profiles`"
            ) from error
        if not profile or config.add_optimization_profile(profile) < 0:
            raise EngineError(f"profile {number} {sizes} is refused", "mend `tensorrt.profiles`")


def _open_cache(config: "trt.IBuilderConfig", asked: Asked, machine: Machine) -> tuple[Path | None, bytes]:
    """Let the builder read the timings that were noted for this GPU, TensorRT and CUDA; file and content."""
    if asked.timing_cache is None:
        return None, b""
    key = f"{machine.gpu}-{machine.capability}-tensorrt-{machine.tensorrt}-cuda-{machine.cuda}"
    file = asked.timing_cache / f"{re.sub(r'[^A-Za-z0-9.]+', '-', key)}.timing"
    content = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(f"TensorRT refuses the timing cache {file}", "delete it, and build again")
    return file, content


def _close_cache(config: "trt.IBuilderConfig", file: Path | None, before: bytes) -> dict[str, Any]:
    """Write the timings, whole or not at all; `hit`: all that were needed had been noted."""
    cache = config.get_timing_cache()
    if file is None or cache is None:
        return {"file": None, "hit": False}
    content = bytes(cache.serialize())
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, content)
    return {"file": file.name, "hit": content == before}


def _deserialized(content: bytes, logger: "trt.ILogger", *, host_code: bool) -> "trt.ICudaEngine":
    import tensorrt as trt

    runtime = _made(trt.Runtime, logger)
    if host_code:
        runtime.engine_host_code_allowed = True  # the lean runtime within a version compatible engine
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise _refused("deserializing the engine", logger, "build it again on this machine")
    return engine


def _described(engine: "trt.ICudaEngine") -> dict[str, Any]:
    """Inputs, outputs and sizes. Raises EngineError where they are not those of a scoring graph."""
    import tensorrt as trt

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = {
        name: {
            "mode": "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output",
            "dtype": engine.get_tensor_dtype(name).name,
            "shape": list(engine.get_tensor_shape(name)),
        }
        for name in names
    }
    if {name: each["dtype"] for name, each in tensors.items()} != DTYPES:
        raise EngineError(
            f"the engine has {tensors}, not {DTYPES}", "build it from a scoring graph of recpress"
        )
    return {
        "tensors": tensors,
        "layers": engine.num_layers,
        "device_memory_bytes": engine.device_memory_size_v2,
        "can_be_refitted": engine.refittable,
    }


def _inspected(engine: "trt.ICudaEngine", logger: "trt.ILogger") -> list[dict[str, Any]]:
    import tensorrt as trt

    inspector = _there(engine.create_engine_inspector(), "making an inspector", logger)
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    except (ValueError, LookupError, TypeError) as error:
        raise _refused(
            f"reading the inspector ({error!r})", logger, "report this version of TensorRT"
        ) from error


def prove(layers: Sequence[Mapping[str, Any]], precision: str) -> dict[str, Any]:
    """Which types the matrix products of an engine read: {"products": {type: layers}, "share": ...}.

    Raises ImpreciseError where fewer than REQUIRED of them read the promised one, or no product is told of.
    """
    found = Counter(kind for layer in layers if (kind := _product_type(layer)))
    known = {kind: count for kind, count in found.items() if kind != "unknown"}
    share = known.get(precision, 0) / max(1, sum(known.values()))
    if share < REQUIRED[precision]:
        told = ", ".join(f"{count} in {kind}" for kind, count in found.items()) or "none is told of"
        raise ImpreciseError(
            f"{precision} was promised, but of the engine's matrix products {told} "
            f"({share:.0%}; {REQUIRED[precision]:.0%} must be {precision})",
            "build it from a graph whose weights are of that type, or name the variant after what it is",
        )
    return {"products": dict(found), "share": share, "layers": len(layers)}


def sparse_layers(layers: Sequence[Mapping[str, Any]]) -> int | None:
    """How many layers run a kernel for 2:4 weights, by the name of their tactic; None where none is named."""
    named = [str(layer.get("TacticName") or "").lower() for layer in layers]
    return sum(bool(SPARSE.search(name)) for name in named) if any(named) else None


def _product_type(layer: Mapping[str, Any]) -> str | None:
    """The narrowest type that a matrix product reads; None for any other layer."""
    name, tactic = str(layer.get("Name", "")), str(layer.get("TacticName", ""))
    types = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')} {tactic}"
    if not PRODUCT.search(types.lower()) and not FUSED_PRODUCT.search(f"{name} {tactic}"):
        return None
    tactic = tactic.lower()
    texts = [_told_type(each) for each in layer.get("Inputs", ())]
    weights = layer.get("Weights")
    texts += [str(weights.get("Type", ""))] if isinstance(weights, Mapping) else []
    kinds = {read for text in texts if (read := _type_of(text.lower()))}
    kinds = kinds or {kind for kind, pattern in TACTICS.items() if re.search(pattern, tactic)}
    return next((kind for kind in ("int8", "fp8", "bf16", "fp16", "fp32") if kind in kinds), "unknown")


def _told_type(value: Mapping[str, Any]) -> str:
    """What the inspector says of the type of an input: with its format up to TensorRT 10, apart in 11."""
    return str(value.get("Format/Datatype") or value.get("Datatype") or value.get("Format", ""))


def _type_of(text: str) -> str | None:
    found = next((kind for kind, pattern in TYPES.items() if re.search(pattern, text)), None)
    return found or ("fp32" if re.search(r"float|fp32", text) else None)


def refit(
    plan: Path,
    new: Path,
    weights: Mapping[str, tuple[str, NDArray[Any]]],
    *,
    told: Mapping[str, Any],
    device: Device,
) -> None:
    """Write an engine with other weights: name -> (HALF, BF16 or FLOAT; array of the same shape as before).

    `told`: of the manifest: machine, flags. Raises UnfitError where the engine is for another machine,
    EngineError where it takes no weights, or not these.
    """
    import tensorrt as trt

    check_machine(told["machine"], told["flags"], device.machine())
    logger = _logger()
    host_code = bool(told["flags"]["version_compatible"])
    engine = _deserialized(plan.read_bytes(), logger, host_code=host_code)
    if not engine.refittable:
        raise EngineError(f"{plan.name} cannot be refitted", "build it with `tensorrt.refittable: true`")
    refitter = trt.Refitter(engine, logger)
    kept = {name: (kind, np.ascontiguousarray(array)) for name, (kind, array) in weights.items()}
    for name, (kind, array) in kept.items():
        given = trt.Weights(getattr(trt.DataType, kind), array.ctypes.data, array.size)
        if not refitter.set_named_weights(name, given):
            raise _refused(f"refitting {name} with {array.shape}", logger, "build the engine again")
    if missing := refitter.get_missing_weights():
        raise EngineError(f"a refit of {', '.join(missing)} is missing", "build the engine again")
    if not refitter.refit_cuda_engine():
        raise _refused("refitting the engine", logger, "build the engine again")
    config = _there(engine.create_serialization_config(), "making a serialization config", logger)
    if include := getattr(trt.SerializationFlag, "INCLUDE_REFIT", None):  # after 10.12: else refits end here
        config.set_flag(include)
    memory = engine.serialize_with_config(config)
    if memory is None:
        raise _refused("serializing the refitted engine", logger, "build the engine again")
    _write(new, bytes(memory))


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def check_machine(built: Mapping[str, Any], flags: Mapping[str, Any], here: Machine) -> None:
    """Raise UnfitError where an engine cannot run here; nothing is deserialized to find out."""
    there, faults = Machine(**built), []
    wide = flags["hardware"] != "none"
    needed = "8.0" if flags["hardware"] == "ampere-plus" else there.capability
    if not wide and (there.gpu, there.capability) != (here.gpu, here.capability):
        faults.append(f"GPU {there.gpu} ({there.capability}), here {here.gpu} ({here.capability})")
    elif flags["hardware"] == "ampere-plus" and _numbers(here.capability) < _numbers(needed):
        faults.append(f"GPUs from compute capability {needed} on, here {here.capability}")
    elif flags["hardware"] == "same-compute-capability" and here.capability != needed:
        faults.append(f"compute capability {needed}, here {here.capability}")
    newer_fits = bool(flags["version_compatible"])
    for what, old, new in (
        ("TensorRT", there.tensorrt, here.tensorrt),
        ("driver", there.driver, here.driver),
    ):
        if old and new and old != new and not (newer_fits and _numbers(new) > _numbers(old)):
            faults.append(f"{what} {old}, here {new}")
    if faults:
        raise UnfitError(
            f"the engine was built for {'; '.join(faults)}",
            "export it again on this machine, or with tensorrt.hardware and tensorrt.version_compatible",
        )


def open_engine(path: Path, entry: Mapping[str, Any], threads: int | None, device: str) -> "Engine":
    """The engine of a variant, by its entry in the manifest. Raises EngineError where it cannot run here."""
    del threads  # of the CPU
    if device != "cuda":
        raise UnfitError(f"an engine runs on a GPU, not on the device {device!r}", "open it with device cuda")
    told = facts_of(entry)
    gpu = open_device()
    check_machine(told["machine"], told["flags"], gpu.machine())
    return Engine(path.read_bytes(), told, gpu)


def facts_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the manifest says of an engine. Raises EngineError unless all is there that opening it takes."""
    told: Mapping[str, Any] = entry.get("engine", {})
    try:
        texts = [*Machine(**told["machine"]), told["flags"]["hardware"]]
        numbers = [told[name] for name in ("length", "seen", "top_k")]
        numbers += [size for low, best, high in told["profiles"] for size in (low, best, high)]
        fits = all(isinstance(each, str) for each in texts) and all(isinstance(each, int) for each in numbers)
        if not (fits and told["profiles"] and isinstance(told["flags"]["version_compatible"], bool)):
            raise ValueError("a value of another type")
    except (LookupError, TypeError, ValueError) as error:
        raise EngineError(
            f"the manifest does not say what it was built for ({error!r})", "export the artifact again"
        ) from error
    return told


class Engine:
    """An open engine. `told`: of its manifest: profiles, length, seen, top_k, flags, cuda_graphs.

    Several threads may share it: calls of one batch size wait for each other, others run side by side.
    """

    def __init__(self, content: bytes, told: Mapping[str, Any], device: Device) -> None:
        self.runtime = f"TensorRT {device.machine().tensorrt}"
        self.length, self.seen = int(told["length"]), int(told["seen"])
        self.top_k, self.graphs = int(told["top_k"]), bool(told.get("cuda_graphs", True))
        self.profiles = [tuple(profile) for profile in told["profiles"]]
        self.largest = max(profile[2] for profile in self.profiles)
        self._logger = _logger()  # lives as long as what is made with it
        host_code = bool(told["flags"]["version_compatible"])
        self._engine = _deserialized(content, self._logger, host_code=host_code)
        self._device, self._opening = device, threading.Lock()
        self._lanes: dict[tuple[int, int], _Lane] = {}

    def run(self, outputs: Sequence[str], given: Mapping[str, Any]) -> list[Any]:
        """The named outputs; a batch beyond the profiles is answered in several calls."""
        items = _left_padded(np.asarray(given["items"]), self.length)
        seen = _narrowed(np.asarray(given["seen"]), self.seen)
        parts = [
            self._lane(len(items[start : start + self.largest])).answer(
                {"items": items[start : start + self.largest], "seen": seen[start : start + self.largest]}
            )
            for start in range(0, max(1, len(items)), self.largest)
        ]
        return [np.concatenate([part[name] for part in parts]) for name in outputs]

    def _lane(self, users: int) -> "_Lane":
        place = self.place(users)
        with self._opening:
            if place not in self._lanes:
                self._lanes[place] = _Lane(self, self._engine, self._device.stream(), *place)
            return self._lanes[place]

    def place(self, users: int) -> tuple[int, int]:
        """(profile, batch size) of a call: the tightest profile; powers of two, so that graphs are few."""
        fit = [number for number, profile in enumerate(self.profiles) if profile[2] >= users]
        number = min(fit, key=lambda each: self.profiles[each][2])
        low, _, high = self.profiles[number]
        return number, min(high, max(low, 1 << (max(1, users) - 1).bit_length()))


class _Lane:
    """One batch size of one profile: a context, a stream, fixed memory, and a CUDA graph of the whole call.

    A context for each, as a captured graph holds only while its context keeps its shapes and addresses. Its
    scratch memory is of the size that its batch takes: a context that is left to itself takes that of the
    largest profile. Lanes share none, as they run side by side.
    """

    def __init__(
        self, told: Engine, engine: "trt.ICudaEngine", stream: Stream, profile: int, size: int
    ) -> None:
        self._lock, self._stream, self._logger = threading.Lock(), stream, told._logger
        self._context = context = _user_managed(engine, self._logger)
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise self._failed(f"choosing profile {profile}")
        stream.synchronize()  # shapes count from here on
        shapes = {"items": (size, told.length), "seen": (size, told.seen)}
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failed(f"giving {name} the shape {shape}")
        if missing := context.infer_shapes():
            raise self._failed(f"inferring shapes ({', '.join(missing)} missing)")
        for name in ("top_items", "scores"):
            shapes[name] = (size, told.top_k)
            if (found := tuple(context.get_tensor_shape(name))) != shapes[name]:
                raise self._failed(f"expecting {name} to be {shapes[name]} (it is {found})")
        self.buffers = {name: stream.buffer(shape, KINDS[DTYPES[name]]) for name, shape in shapes.items()}
        for name, buffer in self.buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise self._failed(f"giving {name} its memory")
        needed = context.update_device_memory_size_for_shapes()
        self._scratch = stream.scratch(needed)
        context.set_device_memory(self._scratch.address, needed)
        for name in ("items", "seen"):
            self.buffers[name].host[...] = 0
            self.buffers[name].upload()
        self._enqueue()  # once before it is captured: what TensorRT puts off is done here
        stream.synchronize()
        self._start = stream.capture(self._enqueue) if told.graphs else self._enqueue

    def answer(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for up to `size` users."""
        users = len(given["items"])
        with self._lock:
            for name, rows in given.items():
                buffer = self.buffers[name]
                buffer.host[:users], buffer.host[users:] = rows, 0
                buffer.upload()
            self._start()
            for name in ("top_items", "scores"):
                self.buffers[name].download()
            self._stream.synchronize()
            return {name: self.buffers[name].host[:users].copy() for name in ("top_items", "scores")}

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failed("executing")

    def _failed(self, step: str) -> EngineError:
        return _refused(step, self._logger, "open the artifact anew; if it stays, export it again")


def _user_managed(engine: "trt.ICudaEngine", logger: "trt.ILogger") -> "trt.IExecutionContext":
    """A context whose scratch memory is still to be given."""
    import tensorrt as trt

    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return _there(engine.create_execution_context(strategy), "creating an execution context", logger)


def _left_padded(items: NDArray[Any], length: int) -> NDArray[Any]:
    """[B, L <= length] -> [B, length], zeros in front."""
    if items.shape[1] > length:
        raise EngineError(
            f"{items.shape[1]} items are longer than the {length} of the engine", "cut histories"
        )
    return np.pad(items, ((0, 0), (length - items.shape[1], 0)))


def _narrowed(seen: NDArray[Any], width: int) -> NDArray[Any]:
    """[B, S] -> [B, width]: each row once, filled up with 0."""
    if seen.shape[1] > width:  # rows that stand there several times need one place
        ordered = np.sort(seen, axis=1)
        ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
        seen = -np.sort(-ordered, axis=1)
        if seen[:, width:].any():
            most = int((seen != 0).sum(axis=1).max())
            raise EngineError(
                f"{most} rows must not come back, but the engine takes {width}",
                f"export it again with tensorrt.seen: {most} or more, or open another variant",
            )
        seen = seen[:, :width]
    return np.pad(seen, ((0, 0), (0, width - seen.shape[1])))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _made(kind: "Callable[[trt.ILogger], Made]", logger: "trt.ILogger") -> "Made":
    """A new object of TensorRT; that it could not be made is a TypeError about a null pointer."""
    try:
        return kind(logger)
    except TypeError as error:
        fix = "see the messages above; does the driver fit this version of CUDA (nvidia-smi)?"
        raise _refused(f"making a {getattr(kind, '__name__', kind)} ({error})", logger, fix) from error


def _there(made: "Made | None", step: str, logger: "trt.ILogger") -> "Made":
    """An object that TensorRT was asked for; None is how it says that it could not make one."""
    if made is None:
        raise _refused(step, logger, "see the messages above; is the memory of the GPU full?")
    return made


def _refused(step: str, logger: "trt.ILogger", fix: str) -> EngineError:
    said = list(getattr(logger, "errors", ()))
    return EngineError(f"TensorRT failed at {step}" + (f": {'; '.join(said[-3:])}" if said else ""), fix)


def _logger() -> "trt.ILogger":
    """Forwards to `logging`, and remembers errors for messages."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            levels = {"INTERNAL_ERROR": 40, "ERROR": 40, "WARNING": 30, "INFO": 20}
            level = levels.get(severity.name, logging.DEBUG)
            if level >= logging.ERROR:
                self.errors.append(msg)
            _log.log(level, msg)

    return Logger()


def _monitor(progress: Progress) -> Any:
    """Tells how far a build is; what `progress` raises (an interrupt) cancels it and is in `stopped`."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.stopped: BaseException | None = None
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                total = self.totals.get(phase_name)
                progress("step", {"text": f"TensorRT: {phase_name}", "step": step + 1, "total": total})
            except BaseException as error:  # must not pass through the library; raised after the build
                self.stopped = error
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

    return Monitor()


class _Cuda:
    """The current CUDA device, through torch."""

    def __init__(self, version: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingError(f"torch cannot be imported ({error})", INSTALL) from error
        if not torch.cuda.is_available():
            raise MissingError(f"torch {torch.__version__} sees no CUDA device", INSTALL)
        self._version = version

    def machine(self) -> Machine:
        import torch

        major, minor = torch.cuda.get_device_capability()
        cuda, gpu = torch.version.cuda or "", torch.cuda.get_device_name()
        return Machine(self._version, cuda, driver(), gpu, f"{major}.{minor}")

    def stream(self) -> Stream:
        return _CudaStream()


class _CudaStream:
    def __init__(self) -> None:
        import torch

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.handle: int = self._stream.cuda_stream

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        return _CudaBuffer(self._stream, shape, dtype)

    def scratch(self, size: int) -> Scratch:
        return _CudaScratch(size)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        import torch

        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may go on using the GPU while this one captures
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay


class _CudaScratch:
    def __init__(self, size: int) -> None:
        import torch

        try:
            self._tensor = torch.empty(max(1, size), dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"the GPU has no {size:,} bytes free, which a batch of this size takes",
                "free some, or export the artifact again with smaller batches in `tensorrt.profiles`",
            ) from error
        self.address: int = self._tensor.data_ptr()


class _CudaBuffer:
    def __init__(self, stream: Any, shape: tuple[int, ...], dtype: str) -> None:
        import torch

        kind = getattr(torch, dtype)
        self._stream, self._pinned = stream, torch.zeros(shape, dtype=kind, pin_memory=True)
        self._tensor = torch.zeros(shape, dtype=kind, device="cuda")
        torch.cuda.synchronize()  # its zeros come from the default stream
        self.host: NDArray[Any] = self._pinned.numpy()
        self.address: int = self._tensor.data_ptr()

    def upload(self) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            self._tensor.copy_(self._pinned, non_blocking=True)

    def download(self) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            self._pinned.copy_(self._tensor, non_blocking=True)
