"""TensorRT engines as variants of an artifact: their graphs, their entries, and what a refresh makes of them.

An engine holds the whole graph, item table included, so it lies in the folder of the catalogue, beside the
graph that it was built from: `tensorrt-fp16.plan`, `tensorrt-fp16.onnx`.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from pydantic import ValidationError

from export import tensorrt
from export.fp8 import fp8_products, input_ranges
from export.half import to_half
from export.lint.check import lint
from export.onnx import save_onnx
from export.plain import plain_operators
from export.quantized_body import quantized_body
from export.recorded import Recorded
from export.static import replace_weights, static_graph, table_weights, weights_of_table, with_spare_rows
from export.tensorrt_config import SEEN_STEP, TensorrtConfig
from export.variants import ENGINE, VariantName, sizes
from recommender.errors import GateError, InputError, StageError
from recommender.scoring import HistoryArrays
from recommender.stage import Progress, silent

RUNNER = "runtime_tensorrt.py"
"""The copy of `export.tensorrt` that `runtime.py` imports; the bare name would hide the package."""
PROFILED = ("batch",)
"""Dynamic axes that profiles cover; lengths and widths are fixed."""
FIRST_FP8 = (8, 9)
"""Compute capability of Ada, the first GPUs with E4M3."""
NO_HISTORIES = HistoryArrays(np.zeros((0, 1), np.int64))


def check_graph(path: Path) -> None:
    """Hold a graph, named by its variant, against the rules of `export.lint` before TensorRT sees it.

    Raises StageError where it is no valid ONNX, or TensorRT would not take it as it promises to be.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the graph is not valid ONNX: {error}", where=path.name) from error
    kind = next((kind for name, kind in ENGINE.items() if name == path.stem), None)
    wrong = [found for found in lint(path, precision=kind, profiled=PROFILED) if found.severity == "error"]
    if wrong:
        first, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise StageError(
            f"TensorRT would not take this graph: {first.rule}, {first.where}: {first.text}{more}",
            where=path.name,
            fix=f"{first.fix}; all findings: recpress lint MODEL.onnx --target tensorrt",
        )


@dataclass(frozen=True)
class EngineOrder:
    """What building engines takes besides the canonical graph.

    `check` sees every graph before it is built, and raises where TensorRT would not take it.
    """

    config: TensorrtConfig
    cache: Path  # folder of timings
    longest: int = 1  # history of the data
    histories: HistoryArrays = NO_HISTORIES  # of training, for the ranges of fp8
    matrices: Mapping[str, Recorded] = field(default_factory=dict)  # of the recorded scheme, for int8
    progress: Progress = silent
    check: Callable[[Path], None] = check_graph

    @property
    def seen(self) -> int:
        """Places for rows that must not come back."""
        return self.config.seen or -(-max(1, self.longest) // SEEN_STEP) * SEEN_STEP


@contextmanager
def told_as_ours() -> Iterator[None]:
    """Errors of `export.tensorrt` as those of the stage, with the exit code that fits."""
    try:
        yield
    except tensorrt.MissingError as error:
        raise InputError(error.what, where="export.variants", fix=error.fix) from error
    except tensorrt.ImpreciseError as error:
        raise GateError(error.what, where="precision of the engine", fix=error.fix) from error
    except tensorrt.EngineError as error:
        raise StageError(error.what, where="export.tensorrt", fix=error.fix) from error


def gpu_for(names: Sequence[VariantName]) -> tensorrt.Device:
    """The GPU of this machine, before any work is done for engines of these names.

    Raises InputError where TensorRT or a GPU is missing, or the GPU cannot compute in what is asked for.
    """
    with told_as_ours():
        device = tensorrt.open_device()
    machine = device.machine()
    capability = tuple(int(part) for part in machine.capability.split("."))
    if "tensorrt-fp8" in names and capability < FIRST_FP8:
        raise InputError(
            f"{machine.gpu} (compute capability {machine.capability}) has no 8-bit floats: Ada and Hopper "
            "(8.9, 9.0) and later have",
            where="export.variants",
            fix="leave tensorrt-fp8 out, or take tensorrt-int8",
        )
    return device


def engine_graph(
    name: VariantName, canonical: ir.Model, order: EngineOrder, *, length: int, n_items: int
) -> ir.Model:
    """The graph that the engine of a variant is built from, in operators that every supported TensorRT reads.

    Raises StageError where it cannot be written in the variant's precision.
    """
    kind, config = ENGINE[name], order.config
    model = static_graph(canonical, length=length, seen=order.seen)
    if kind == "int8":
        model = quantized_body(model, order.matrices, name)
    if kind == "fp8":
        model = fp8_products(model, input_ranges(model, order.histories, length=length, seen=order.seen))
    if config.refittable:
        model = with_spare_rows(model, n_items + 1 + config.spare_items, n_items)
    wanted = config.around if kind in ("int8", "fp8") else kind
    return plain_operators(to_half(model, wanted) if wanted in ("fp16", "bf16") else model)


def engine_entry(
    name: VariantName, manifest: Mapping[str, Any], catalogue: Path, order: EngineOrder
) -> dict[str, Any]:
    """Build the engine of a variant into the folder of a catalogue; its entry in the manifest.

    Raises InputError without TensorRT or a GPU, StageError where the engine cannot be built, GateError where
    it computes in other types than its name says.
    """
    first = manifest["variants"][0]
    length = min(order.config.length or first["max_length"], first["max_length"])
    n_items = manifest["catalogue"]["items"]
    order.progress("note", {"text": f"building {name}: this takes minutes"})
    canonical = ir.load(catalogue / Path(first["graph"]).name)
    graph = engine_graph(name, canonical, order, length=length, n_items=n_items)
    return _built(name, graph, manifest, catalogue, order, length)


def refreshed_entry(
    entry: Mapping[str, Any],
    manifest: Mapping[str, Any],
    folder: Path,
    made: Path,
    cache: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The engine of a variant with another item table, refitted where that is possible, else built anew.

    `entry`: of the version in use, whose files lie in `folder`; the catalogue `made` has the new table.
    Raises as `engine_entry` does, and InputError where the entry does not tell what the engine was built for.
    """
    name = entry["name"]
    told, config, refittable = _told(entry)
    source = folder / next(file for file in entry["files"] if file.endswith(".onnx"))
    graph = ir.load(source)
    n_items = manifest["catalogue"]["items"]
    table = np.load(made / "item_table.npy", mmap_mode="r")[: n_items + 1]
    weights = table_weights(graph, table, n_items)
    same = all(
        graph.graph.initializers[each].shape == ir.Shape(array.shape) for each, (_, array) in weights.items()
    )
    replace_weights(graph, {each: array for each, (_, array) in weights.items()})
    if not (refittable and same):
        order = EngineOrder(config.model_copy(update={"seen": told["seen"]}), cache, progress=progress)
        return _built(name, graph, manifest, made, order, told["length"])
    device = gpu_for([name])
    files = save_onnx(graph, made / source.name)
    plan = made / f"{name}.plan"
    with told_as_ours():
        tensorrt.refit(folder / entry["graph"], plan, weights, told=told, device=device)
    return {**entry, **_places(made, plan, files), "engine": {**told, "refitted": True}}


def _told(entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], TensorrtConfig, bool]:
    """What the manifest says of an engine, what had been asked for, and whether it takes other weights."""
    try:
        told = tensorrt.facts_of(entry)
        return told, TensorrtConfig.model_validate(told["asked"]), bool(told["flags"]["refittable"])
    except tensorrt.EngineError as error:
        what = error.what
    except (LookupError, TypeError, ValidationError) as error:
        what = f"the manifest does not say how it was built ({error!r})"
    raise InputError(what, where=f"manifest.json, variant {entry['name']}", fix="export the artifact again")


def build_engine(
    name: VariantName, graph: ir.Model, folder: Path, order: EngineOrder, *, length: int, top_k: int
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Write `NAME.onnx` and the engine that is built from it, `NAME.plan`, into a folder.

    `graph`: as `engine_graph` makes it, for histories of `length`. Gives the names of the graph's files, and
    what `tensorrt.open_engine` reads under `engine`. Raises as `engine_entry` does.
    """
    device, config = gpu_for([name]), order.config
    source = folder / f"{name}.onnx"
    files, refittable = save_onnx(graph, source), weights_of_table(graph) if config.refittable else ()
    with told_as_ours():
        facts = tensorrt.build(
            source, folder / f"{name}.plan", config.asked(order.cache, refittable), precision=ENGINE[name],
            check=order.check, device=device, progress=order.progress,
        )  # fmt: skip
    told = {
        **facts, "length": length, "seen": order.seen, "top_k": top_k, "cuda_graphs": config.cuda_graphs,
        "asked": config.model_dump(mode="json"),
    }  # fmt: skip
    return files, told


def _built(
    name: VariantName,
    graph: ir.Model,
    manifest: Mapping[str, Any],
    catalogue: Path,
    order: EngineOrder,
    length: int,
) -> dict[str, Any]:
    same = sizes(manifest)
    files, told = build_engine(name, graph, catalogue, order, length=length, top_k=same["top_k"])
    if not (catalogue.parent / RUNNER).exists():
        shutil.copyfile(str(tensorrt.__file__), catalogue.parent / RUNNER)
    machine = tensorrt.Machine(**told["machine"])
    batches = ", ".join(f"{low} to {high}" for low, _, high in order.config.profiles)
    return {
        "name": name,
        "about": f"a TensorRT engine for {machine.gpu}: histories of {length}, batches of {batches}",
        "precision": ENGINE[name],
        **_places(catalogue, catalogue / f"{name}.plan", files),
        "device": "cuda",
        "on_cpu": False,
        "runtime": "tensorrt",
        "runs_on": f"TensorRT {machine.tensorrt} on {machine.gpu} (device cuda)",
        "fixed_length": length,
        "engine": told,
        **same,
        "format": "tensorrt",
        "max_length": length,
    }


def _places(catalogue: Path, plan: Path, files: tuple[str, ...]) -> dict[str, Any]:
    """Where the files of an engine lie, relative to the artifact."""
    graph = f"{catalogue.name}/{plan.name}"
    return {"graph": graph, "files": [graph, *(f"{catalogue.name}/{file}" for file in files), RUNNER]}
