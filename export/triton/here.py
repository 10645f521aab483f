"""A model of a repository on this machine: its graph, opened by what runs it where that fits."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from export.runtime import ArtifactError, Session, open_session
from export.triton.models import INPUTS, OUTPUTS
from recommender.errors import GateError, InputError

Run = Callable[[Mapping[str, NDArray[np.int64]]], Mapping[str, NDArray[Any]]]
"""Inputs by name to outputs by name: a graph here, or a model of a server."""

AGAIN = "copy the repository again, or export it again"


class NotHereError(Exception):
    """Nothing on this machine runs the graph; the text says why."""


def open_here(folder: Path, model: Mapping[str, Any]) -> Run:
    """The graph of a model, whose entry in the manifest is given: ONNX on the CPU, others where they belong.

    Raises NotHereError where this machine is another one than it is for, or lacks what runs it; InputError
    where it should run and cannot be opened. A call raises GateError where the graph does not answer.
    """
    path = folder / model["graph"]
    session = OPENERS[path.suffix](path, model)

    def run(inputs: Mapping[str, NDArray[np.int64]]) -> Mapping[str, NDArray[Any]]:
        given = {own: inputs[told["name"]] for own, told in zip(INPUTS, model["inputs"], strict=True)}
        try:
            answer = session.run(OUTPUTS, given)
        except Exception as error:  # of onnxruntime, torch or TensorRT, each with classes of its own
            raise GateError(f"{model['name']!r} cannot answer here: {error}", where=str(path)) from error
        return {told["name"]: values for told, values in zip(model["outputs"], answer, strict=True)}

    return run


def _onnx(path: Path, model: Mapping[str, Any]) -> Session:
    try:
        opened: Session = open_session(path, 1, "cpu")
    except ArtifactError as error:
        if isinstance(error.__cause__, NoKernel):
            what, version = str(error.__cause__).rpartition(" : ")[2], onnxruntime.__version__
            raise NotHereError(f"onnxruntime {version} has no kernels for it on a CPU ({what})") from error
        raise InputError(str(error), where=str(path), fix=AGAIN) from error
    return opened


def _package(path: Path, model: Mapping[str, Any]) -> Session:
    import torch

    from export import aot

    told: Mapping[str, Any] = model.get("compiled") or {}
    device = "cuda" if model["gpu"] else "cpu"
    entry = {"compiled": told, "top_k": model["top_k"], "max_length": model["items"]}
    try:
        aot.check_machine(told, device)
    except ValueError as error:
        raise NotHereError(str(error)) from error
    try:
        opened: Session = aot.open_engine(path, entry, None, device)
    except ValueError as error:
        if told.get("torch") != torch.__version__:  # which may not read what another one wrote
            raise NotHereError(str(error)) from error
        raise InputError(str(error), where=str(path), fix=AGAIN) from error
    return opened


def _engine(path: Path, model: Mapping[str, Any]) -> Session:
    from export import tensorrt

    if "engine" not in model:
        raise NotHereError("the repository does not say what it was built for")
    try:
        opened: Session = tensorrt.open_engine(path, model, None, "cuda")
    except (tensorrt.MissingError, tensorrt.UnfitError) as error:
        raise NotHereError(error.what) from error
    except tensorrt.EngineError as error:
        raise InputError(error.what, where=str(path), fix=error.fix) from error
    return opened


OPENERS: dict[str, Callable[[Path, Mapping[str, Any]], Session]] = {
    ".onnx": _onnx, ".pt2": _package, ".plan": _engine,
}  # fmt: skip
