"""Go through the rules of a target."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from export.lint.findings import Asked, Finding, Precision


def lint(
    path: Path,
    *,
    target: Literal["tensorrt"] = "tensorrt",
    precision: Precision | None = None,
    profiled: Collection[str] | None = None,
    tensorrt: tuple[int, ...] | None = None,
) -> tuple[Finding, ...]:
    """What of an ONNX file the target would refuse (errors) or treat worse than hoped (warnings).

    `precision`: what the weights are promised to be. `profiled`: names of the axes (`batch`, `length`) that
    an optimisation profile covers; None: not checked. `tensorrt`: the version that is to read it, (10, 12);
    None: any that is supported. Needs nothing of the target. Raises InputError when
    the file is no ONNX, or bytes that a rule must read are not there.
    """
    from export.lint.graph import read_graph
    from export.lint.rules import RULES

    graph = read_graph(path)
    asked = Asked(precision, None if profiled is None else frozenset(profiled), tensorrt)
    return tuple(
        Finding(name, fault.severity, fault.where, fault.text, fault.fix)
        for name, rule in RULES[target].items()
        for fault in rule(graph, asked)
    )
