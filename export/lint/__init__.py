"""Static rules: what another runtime would refuse of a graph, from the file alone."""

from export.lint.check import lint
from export.lint.findings import Finding, Precision

__all__ = ["Finding", "Precision", "lint"]
