"""Rules about what goes in and out: axes and types."""

from collections.abc import Iterator
from typing import Any

import onnx

from export.lint.findings import Asked, Fault
from export.lint.graph import Graph
from export.lint.operators import type_name

_T = onnx.TensorProto
IO_TYPES = (_T.INT32, _T.INT64, _T.FLOAT, _T.FLOAT16, _T.BFLOAT16)


def named_axis(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Every input has a known number of axes, and each one that is dynamic has a name: a profile is written
    by name, and equal names are one size (torch.onnx.export, dynamic_shapes).
    """
    for value in _inputs(graph):
        if not value.type.tensor_type.HasField("shape"):
            yield Fault(
                f"input {value.name!r}", "how many axes it has is not known", "export it with a shape"
            )
            continue
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if not axis.dim_param and axis.dim_value <= 0:
                yield Fault(f"input {value.name!r}", f"axis {place} is dynamic and has no name",
                            "name it: dynamic_shapes={...: {axis: Dim('batch')}}")  # fmt: skip


def profile(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Every dynamic axis is covered by an optimisation profile: the builder refuses the others
    (IBuilderConfig.add_optimization_profile).
    """
    if asked.profiled is None:
        return
    for value in _inputs(graph):
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.dim_param and axis.dim_param not in asked.profiled:
                known = ", ".join(sorted(asked.profiled)) or "none"
                yield Fault(f"input {value.name!r}",
                            f"axis {place} ({axis.dim_param}) is dynamic, and no profile covers it",
                            f"give its least, usual and largest size (covered: {known}), or make it "
                            "static")  # fmt: skip


def io_type(graph: Graph, asked: Asked) -> Iterator[Fault]:
    """Inputs and outputs are int32, int64 or floats: item rows and scores need no others, and clients of
    inference servers know these (TensorRT, support matrix).
    """
    for kind, values in (("input", _inputs(graph)), ("output", graph.model.graph.output)):
        for value in values:
            given = value.type.tensor_type.elem_type
            if given not in IO_TYPES:
                named = type_name(given) if value.type.HasField("tensor_type") else "no tensor"
                yield Fault(f"{kind} {value.name!r}", f"is {named}, not int32, int64 or a float",
                            "cast it inside of the graph")  # fmt: skip


def _inputs(graph: Graph) -> list[Any]:
    """The inputs of the graph that are no weights."""
    return [value for value in graph.model.graph.input if value.name not in graph.initializers]
