"""What a rule finds, and what it is asked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from export.lint.graph import Graph

Severity = Literal["error", "warning"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


@dataclass(frozen=True)
class Finding:
    """One place where a graph breaks a rule."""

    rule: str
    severity: Severity
    where: str  # the node, value or weight
    text: str  # what is wrong
    fix: str


@dataclass(frozen=True)
class Fault:
    """A finding that does not know yet which rule made it."""

    where: str
    text: str
    fix: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Asked:
    """What the graph is meant for."""

    precision: Precision | None = None  # what its weights are promised to be
    profiled: frozenset[str] | None = None  # axes that an optimisation profile covers; None: not known yet
    tensorrt: tuple[int, ...] | None = None  # the version that is to read it; None: any that is supported


Rule = Callable[["Graph", Asked], Iterator[Fault]]
"""A rule; its docstring says what it demands, and by which source."""
