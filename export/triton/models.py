"""What the server is told of each model: its backend, inputs and outputs, how requests share calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.triton.config import TritonConfig
from export.triton.pbtxt import Message, Word, write_pbtxt
from recommender.errors import InputError

FILES = {".onnx": "model.onnx", ".plan": "model.plan", ".pt2": "model.pt2"}
BACKENDS = {
    ".onnx": {"backend": "onnxruntime"},
    ".plan": {"backend": "tensorrt"},
    ".pt2": {"platform": "torch_aoti"},
}
TYPES = {"INT64": "TYPE_INT64", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32"}
"""Types of the Open Inference Protocol, and what configurations call them."""
INPUTS, OUTPUTS = ("items", "seen"), ("top_items", "scores")
"""Of a scoring graph, by its own names."""
HOST_CODE = "--backend-config=tensorrt,version-compatible=true"
"""Without it the server loads no version compatible engine: there is code of the host in it."""


@dataclass(frozen=True)
class Tensor:
    """An input or output as clients see it; -1: any size. The first axis is the batch."""

    name: str
    type: str  # of the Open Inference Protocol: INT64, FP32
    shape: tuple[int, ...]

    def as_document(self) -> dict[str, Any]:
        """For the manifest."""
        return {"name": self.name, "type": self.type, "shape": list(self.shape)}


@dataclass(frozen=True)
class Served:
    """One model of a repository."""

    name: str
    variant: str
    precision: str
    graph: Path  # in the artifact
    beside: tuple[Path, ...]  # external data, likewise
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: bool  # whether the server puts requests together
    max_batch_size: int
    items: int  # clients pad histories to so many, on the left
    seen: int | None  # and rows to mask to so many; None: to a multiple of `seen_step`
    profiles: int = 1  # of an engine
    gpu: bool = False
    built: Mapping[str, Any] = field(default_factory=dict)  # `engine` or `compiled`, as the artifact tells it

    @property
    def server_options(self) -> tuple[str, ...]:
        """What the server has to be started with to load it."""
        flags = self.built.get("engine", {}).get("flags", {})
        return (HOST_CODE,) if flags.get("version_compatible") else ()

    @property
    def file(self) -> str:
        """The graph's name in the folder of the version."""
        return FILES[self.graph.suffix]


def served_model(name: str, entry: Mapping[str, Any], folder: Path, config: TritonConfig) -> Served:
    """The model that serves a variant, whose entry in the artifact's manifest is given.

    Raises InputError for a variant that is not one graph, or that cannot run where it is to.
    """
    _check_whole(entry)
    graph = folder / entry["graph"]
    compiled = graph.suffix == ".pt2"
    gpu = graph.suffix == ".plan" or entry.get("device") == "cuda" or (not compiled and config.kind == "gpu")
    if graph.suffix == ".onnx" and not gpu:
        _check_on_cpu(entry)
    engine: Mapping[str, Any] = entry.get("engine", {})
    profiles = engine.get("asked", {}).get("profiles", [])
    largest = max((int(profile[-1]) for profile in profiles), default=config.max_batch_size)
    items, seen = entry.get("fixed_length"), engine.get("seen")
    names = ("INPUT__0", "INPUT__1", "OUTPUT__0", "OUTPUT__1") if compiled else (*INPUTS, *OUTPUTS)
    length = items or (1 if entry["inputs"]["items"][1] == 1 else -1)
    return Served(
        name=name,
        variant=entry["name"],
        precision=entry["precision"],
        graph=graph,
        beside=tuple(folder / file for file in entry["files"] if file.endswith(".data"))
        if graph.suffix == ".onnx"
        else (),
        inputs=(Tensor(names[0], "INT64", (-1, length)), Tensor(names[1], "INT64", (-1, seen or -1))),
        outputs=(
            Tensor(names[2], "INT64", (-1, entry["top_k"])),
            Tensor(names[3], "FP32", (-1, entry["top_k"])),
        ),
        batching=not compiled,
        max_batch_size=0 if compiled else min(config.max_batch_size, largest),
        items=items or entry["max_length"],
        seen=seen,
        profiles=max(1, len(profiles)),
        gpu=gpu,
        built={key: entry[key] for key in ("engine", "compiled") if key in entry},
    )


def _check_whole(entry: Mapping[str, Any]) -> None:
    if Path(entry.get("graph", "")).suffix not in FILES:
        raise InputError(
            f"variant {entry['name']} is a body and a head, and a server wants one graph",
            where="export.triton.variants",
            fix="serve fp32, fp16, a compiled variant or an engine",
        )


def _check_on_cpu(entry: Mapping[str, Any]) -> None:
    if not entry.get("on_cpu", True):
        raise InputError(
            f"variant {entry['name']} is for {entry['runs_on']}",
            where="export.triton.kind",
            fix="kind: gpu, or serve another variant",
        )


def config_of(model: Served, config: TritonConfig) -> str:
    """config.pbtxt of a model."""
    message: Message = {
        "name": model.name,
        **BACKENDS[model.graph.suffix],
        "max_batch_size": model.max_batch_size,
        "input": [_tensor(each, model) for each in model.inputs],
        "output": [_tensor(each, model) for each in model.outputs],
    }
    if model.batching:
        message["dynamic_batching"] = {
            "max_queue_delay_microseconds": config.max_queue_delay_microseconds,
            "default_queue_policy": {
                "timeout_action": Word("REJECT"),
                "default_timeout_microseconds": config.timeout_microseconds,
                "allow_timeout_override": True,
                "max_queue_size": config.queue_size,
            },
        }
    profiles = {"profile": [str(number) for number in range(model.profiles)]} if model.profiles > 1 else {}
    kind = Word("KIND_GPU" if model.gpu else "KIND_CPU")
    message["instance_group"] = [{"count": config.instances, "kind": kind, **profiles}]
    sizes = (1, model.max_batch_size) if model.max_batch_size > 1 else (1,)
    message["model_warmup"] = [_warmup(model, config, size) for size in sizes]
    message["version_policy"] = {"latest": {"num_versions": 1}}
    message["response_cache"] = {"enable": False}
    if config.threads is not None and model.graph.suffix == ".onnx" and not model.gpu:
        message["parameters"] = [
            {"key": "intra_op_thread_count", "value": {"string_value": str(config.threads)}}
        ]
    return write_pbtxt(message)


def _tensor(tensor: Tensor, model: Served) -> Message:
    dims = tensor.shape[1:] if model.max_batch_size else tensor.shape
    return {"name": tensor.name, "data_type": Word(TYPES[tensor.type]), "dims": list(dims)}


def _warmup(model: Served, config: TritonConfig, users: int) -> Message:
    """A call of the shape that clients send: histories of padding only."""
    places = (model.items, model.seen or config.seen_step)
    inputs = [
        {
            "key": tensor.name,
            "value": {
                "data_type": Word(TYPES[tensor.type]),
                "dims": [count] if model.max_batch_size else [users, count],
                "zero_data": True,
            },
        }
        for tensor, count in zip(model.inputs, places, strict=True)
    ]
    return {"name": f"{users}-users", "batch_size": users, "inputs": inputs}
