"""The canonical ONNX of a recommender: one portable opset-23 file, dynamic batch, length and seen."""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from export.contract import OPSET, ScoringExporterConfig, ScoringSizes
from export.graph import ScoringGraph
from export.passes import STANDARD_DOMAINS, tidy
from recommender.errors import StageError
from recommender.models.interface import SequentialRecommender

LARGEST_FILE = 1 << 30
"""Above this many bytes of weights they go into a file beside the graph: protobuf ends at 2 GiB."""

TRACEABLE = "user_vector must trace for any batch and length: no len(tensor), no branch on values"


@dataclass(frozen=True)
class OnnxFacts:
    """What came out of an export."""

    files: tuple[str, ...]  # the graph first, then its external data
    nodes: int
    operators: dict[str, int]
    opset: int
    ir_version: int
    size_bytes: int
    seconds: float


def export_onnx(
    model: SequentialRecommender,
    path: Path,
    *,
    top_k: int,
    opset: int = OPSET,
    metadata: dict[str, str] | None = None,
    largest_file: int = LARGEST_FILE,
) -> OnnxFacts:
    """Write the scoring graph of `model` to `path` and check it.

    The model is put into evaluation mode and moved to the CPU. Raises InputError when top_k does not fit the
    catalogue, StageError when torch cannot export the model or the graph breaks its contract.
    """
    started = time.perf_counter()
    contract = ScoringExporterConfig(ScoringSizes(model.n_items, model.max_length, top_k))
    graph = ScoringGraph(model, top_k).eval().cpu()
    exported = _trace(graph, contract, opset)
    tidy(exported)
    exported.producer_name, exported.graph.name = "recpress", "recommend"
    exported.metadata_props.update(metadata or {})
    files = save_onnx(exported, path, largest_file)
    check_onnx(path, contract, opset)
    proto = onnx.load(path, load_external_data=False)
    return OnnxFacts(
        files=files,
        nodes=len(proto.graph.node),
        operators=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        opset=opset,
        ir_version=proto.ir_version,
        size_bytes=sum((path.parent / file).stat().st_size for file in files),
        seconds=time.perf_counter() - started,
    )


def _trace(graph: ScoringGraph, contract: ScoringExporterConfig, opset: int) -> ir.Model:
    dummies = contract.generate_dummy_inputs(framework="pt")
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph,
                kwargs=dummies,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=contract.dynamic_shapes(),
                input_names=list(contract.inputs),
                output_names=list(contract.outputs),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise StageError(
            f"torch cannot export this {type(graph.model).__name__} to ONNX: {reason(error)}",
            where="export",
            fix=TRACEABLE,
        ) from error
    assert program is not None
    return program.model


def reason(error: BaseException) -> str:
    """The first line of the deepest cause; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's notes about packages that are not installed and about its own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def save_onnx(model: ir.Model, path: Path, largest_file: int = LARGEST_FILE) -> tuple[str, ...]:
    """Write a graph, its weights beside it where they are too many for one file; the names of the files."""
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
    )
    beside = f"{path.name}.data" if weights > largest_file else None
    ir.save(model, path, external_data=beside)
    return (path.name,) if beside is None else (path.name, beside)


def check_onnx(path: Path, contract: ScoringExporterConfig, opset: int = OPSET) -> None:
    """Raise StageError unless the file is valid ONNX, portable, and as dynamic as the contract says."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the exported graph is not valid ONNX: {error}", where=str(path)) from error
    model = onnx.load(path, load_external_data=False)
    faults = [
        f"operators of {entry.domain} {entry.version}"
        for entry in model.opset_import
        if entry.domain not in STANDARD_DOMAINS
    ]
    faults += [
        f"operator {n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in STANDARD_DOMAINS
    ]
    faults += [
        f"opset {entry.version} instead of {opset}"
        for entry in model.opset_import
        if entry.domain in STANDARD_DOMAINS and entry.version != opset
    ]
    for values, axes in ((model.graph.input, contract.inputs), (model.graph.output, contract.outputs)):
        faults += _shape_faults(values, axes)
    if faults:
        raise StageError(
            f"the exported graph breaks its contract: {'; '.join(faults)}", where=str(path), fix=TRACEABLE
        )


def _shape_faults(values: "list[onnx.ValueInfoProto]", axes: dict[str, dict[int, str]]) -> list[str]:
    names = [value.name for value in values]
    if names != list(axes):
        return [f"it has {names} where {list(axes)} belong"]
    faults = []
    for value in values:
        for axis, name in axes[value.name].items():
            size = value.type.tensor_type.shape.dim[axis]
            if size.dim_param != name:
                faults.append(
                    f"axis {axis} of {value.name!r} is {size.dim_value or size.dim_param}, not {name!r}"
                )
    return faults
