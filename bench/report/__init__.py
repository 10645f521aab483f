"""Reports: one typed document (`schema`), written as JSON, Markdown and self-contained HTML."""

from bench.report.files import read, rebuild, write

__all__ = ["read", "rebuild", "write"]
