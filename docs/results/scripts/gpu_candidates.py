"""What scripts/deploy_gpu.py compares: recommenders with random weights, and the ways to serve them.

Each opener is called in a child of the bench, on the device that it is told, with the size of the model as
plain values. What a way needs and does not find is an InputError, which becomes the reason in its row.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recommender.errors import InputError
from recommender.files import complete_folder, read_json, write_json
from recommender.scoring import HistoryArrays, Scorer, ScorerRef, TopK
from recommender.ways import WAYS

K = 10
BATCHES = (1, 32, 256, 1024)
AOT = {"aot": "fp32", "aot-bf16": "bf16"}
ONNX = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
ENGINES = {"tensorrt-bf16": "bf16", "tensorrt-fp16": "fp16"}
"""Native TensorRT engines. Not tensorrt-fp8: its ranges come from real histories, and here are none."""
ENGINE_FACTS = "engine.json"
"""What a cached engine is tied to, beside it."""
EVERY_WAY = (
    "eager",
    "graphs-bf16",
    "aot-bf16",
    "bf16",
    "tensorrt-bf16",
    "graphs",
    "compile-bf16",
    "tensorrt-fp16",
    "aot",
    "tf32",
    "compile",
    *ONNX,
)
"""The most important first; eager is what the others are compared with."""


@dataclass(frozen=True)
class Size:
    """A Llama-shaped recommender."""

    layers: int
    hidden: int = 512
    heads: int = 8
    ffn: int = 1536
    item_dim: int = 64
    length: int = 50


SIZES = {"teacher": Size(layers=32), "student": Size(layers=4)}


def build(size: Size, n_items: int) -> Any:
    """The model in eval mode on the CPU, with the same random weights in every process."""
    from recommender.models.build import build_model
    from recommender.models.config import LlmConfig

    config = LlmConfig(
        family="llama", layers=size.layers, hidden=size.hidden, heads=size.heads, ffn=size.ffn,
        item_dim=size.item_dim, dropout=0.0,
    )  # fmt: skip
    return build_model(config, n_items=n_items, max_length=size.length, seed=0).eval()


def reference_to(way: str, size: Size, n_items: int, *, batches: Sequence[int], cache: Path) -> ScorerRef:
    """How a child opens one way; `cache`: where compiled packages are kept for the next time."""
    options: dict[str, Any] = {"size": dataclasses.asdict(size), "n_items": n_items}
    if way in AOT:
        options |= {"way": way, "batches": list(batches)}
        opener = "gpu_candidates:open_aot"
    elif way in ENGINES:
        options |= {"way": way, "batches": list(BATCHES)}  # of the whole table, so that it is built once
        opener = "gpu_candidates:open_tensorrt"
    elif way in ONNX:
        options |= {"provider": ONNX[way]}
        opener = "gpu_candidates:open_onnx"
    else:
        options |= {"way": way}
        opener = "gpu_candidates:open_torch"
    return ScorerRef(way, "checkpoint", "torch", cache, opener, options)


class Precisions(NamedTuple):
    """What a way computes in and stores, for the roofline."""

    body: str  # products of the blocks and around them
    table: str  # the item table, as it is stored
    scoring: str  # the product with it
    tf32: bool = False  # whether float32 products are rounded to TF32


def precisions(way: str, device: str) -> Precisions:
    """Those of a way on a device."""
    if way in AOT:
        return Precisions(AOT[way], "fp32", "fp32")
    if way in ENGINES:
        return Precisions(ENGINES[way], ENGINES[way], "fp32")  # rows are cast for the last product
    if way in ONNX:
        return Precisions("fp32", "fp32", "fp32", tf32=way == "ort-tensorrt")
    chosen = WAYS[way]  # type: ignore[index]
    if chosen.precision == "bf16":
        table = "bf16" if device.startswith("cuda") else "fp32"
        return Precisions("bf16", table, table)
    return Precisions("fp32", "fp32", "fp32", tf32=chosen.precision == "tf32")


def open_torch(
    path: Path, *, device: str, threads: int, way: str, size: Mapping[str, int], n_items: int
) -> Scorer:
    """Eager, compiled, or through CUDA graphs."""
    import torch

    from recommender.torch_ways import scorer_in
    from recommender.ways import check_way

    check_way(way, device)  # before a large model is built
    torch.set_num_threads(threads)
    return scorer_in(way, build(Size(**size), n_items).to(device))


def open_aot(
    path: Path, *, device: str, threads: int, way: str, size: Mapping[str, int], n_items: int,
    batches: Sequence[int],
) -> Scorer:  # fmt: skip
    """An AOTInductor package as an artifact holds it; compiled here unless it was already.

    On CUDA calls of these batch sizes are replayed as CUDA graphs.
    """
    try:
        from export import aot, aot_build
    except ImportError as error:
        raise InputError(f"AOTInductor packages cannot be made here: {error}", where=way) from error
    kind = device.partition(":")[0]
    config = aot_build.AotConfig.model_validate({"device": kind, "cuda_graph_batches": tuple(batches)})
    aot_build.check_build(config)
    path.mkdir(parents=True, exist_ok=True)
    numbers = "-".join(str(value) for value in size.values())
    package = path / f"{way}-{kind}-{numbers}-{n_items}.pt2"
    if not package.is_file():
        model = build(Size(**size), n_items)
        with tempfile.TemporaryDirectory(dir=path) as folder:
            made = Path(folder) / "package.pt2"
            aot_build.build_package(model, made, way, top_k=K, config=config)
            made.rename(package)
    graphs = {"cuda_graph_batches": list(batches)} if kind == "cuda" else {}
    entry = {"compiled": {**aot.machine(kind), **graphs}, "max_length": size["length"], "top_k": K}
    return Engine(aot.open_engine(package, entry, threads, kind))


def open_tensorrt(
    path: Path, *, device: str, threads: int, way: str, size: Mapping[str, int], n_items: int,
    batches: Sequence[int],
) -> Scorer:  # fmt: skip
    """A TensorRT engine as an artifact holds it, tuned for these batch sizes, replayed as CUDA graphs.

    Built here unless `path` holds one that fits this GPU, driver and TensorRT. Raises InputError where one of
    them is missing.
    """
    if not device.startswith("cuda"):
        raise InputError(
            f"an engine needs a GPU, and the device is {device!r}", where=way, fix="--device cuda"
        )
    try:
        from export import engines, tensorrt
        from export.tensorrt_config import TensorrtConfig
    except ImportError as error:
        raise InputError(f"engines cannot be made here: {error}", where=way) from error
    gpu = engines.gpu_for([way])
    config = TensorrtConfig(profiles=profiles(batches))
    order = engines.EngineOrder(config, path, longest=size["length"])
    numbers = "-".join(str(value) for value in size.values())
    folder = path / f"{way}-{numbers}-{n_items}"
    if not fits(folder, order, size["length"], gpu.machine()):
        make_engine(folder, way, order, Size(**size), n_items)
    entry = {"engine": read_json(folder / ENGINE_FACTS)}
    with engines.told_as_ours():
        return Engine(tensorrt.open_engine(folder / f"{way}.plan", entry, threads, "cuda"))


def profiles(batches: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """One for each batch size: (the one after the last profile's largest, tuned for, largest)."""
    every = sorted(batches)
    return tuple((low + 1, high, high) for low, high in zip([0, *every], every, strict=False))


def fits(folder: Path, order: Any, length: int, here: Any) -> bool:
    """Whether a folder holds the engine that is asked for, and it was built for a machine like this one."""
    from export import tensorrt

    if not (folder / ENGINE_FACTS).is_file():
        return False
    told = read_json(folder / ENGINE_FACTS)
    asked = {"asked": order.config.model_dump(mode="json"), "length": length, "seen": order.seen, "top_k": K}
    if any(told[key] != value for key, value in asked.items()):
        return False
    try:
        tensorrt.check_machine(told["machine"], told["flags"], here)
    except tensorrt.UnfitError:
        return False  # it is built again
    return True


def make_engine(folder: Path, way: str, order: Any, size: Size, n_items: int) -> None:
    """Write the engine, and what there is to say of it, in the place of what the folder held."""
    import onnx_ir as ir

    from export.engines import build_engine, engine_graph
    from export.onnx import export_onnx

    with complete_folder(folder) as made, tempfile.TemporaryDirectory(dir=made.parent) as whole:
        file = Path(whole) / "model.onnx"
        export_onnx(build(size, n_items), file, top_k=K)
        graph = engine_graph(way, ir.load(file), order, length=size.length, n_items=n_items)
        files, told = build_engine(way, graph, made, order, length=size.length, top_k=K)
        for each in files:  # the graph has done its duty
            (made / each).unlink()
        write_json(made / ENGINE_FACTS, told)


class Engine:
    """A package or an engine as a scorer of lists of `K`."""

    def __init__(self, package: Any) -> None:
        self.package = package

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best of each history; k is `K` at most."""
        seen = np.zeros((len(history.items), 1), np.int64) if history.seen is None else history.seen
        items, scores = self.package.run(("top_items", "scores"), {"items": history.items, "seen": seen})
        return TopK(items[:, :k], scores[:, :k])


def open_onnx(
    path: Path, *, device: str, threads: int, provider: str, size: Mapping[str, int], n_items: int
) -> Scorer:
    """The canonical ONNX in onnxruntime, whole batches, float32; on CUDA without TF32."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} has no {provider}",
            where=provider,
            fix="pip install onnxruntime-gpu, and TensorRT for its provider",
        )
    try:
        from export.onnx import export_onnx
    except ImportError as error:
        raise InputError(f"the canonical ONNX cannot be written here: {error}", where=provider) from error
    number = int(device.partition(":")[2] or 0)
    given = {"device_id": number, **({"use_tf32": 0} if provider == "CUDAExecutionProvider" else {})}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory(prefix="recpress-onnx-") as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(build(Size(**size), n_items), file, top_k=K)
        session = onnxruntime.InferenceSession(str(file), options, providers=[(provider, given)])
    if session.get_providers()[0] != provider:
        raise InputError(f"onnxruntime fell back to {session.get_providers()[0]}", where=provider)
    return Session(session)


class Session:
    """A session as a scorer of lists of `K`."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def top_k(self, history: HistoryArrays, k: int) -> TopK:
        """The k best of each history; k is `K` at most."""
        seen = np.zeros((len(history.items), 1), np.int64) if history.seen is None else history.seen
        items, scores = self.session.run(["top_items", "scores"], {"items": history.items, "seen": seen})
        return TopK(items[:, :k], scores[:, :k])
