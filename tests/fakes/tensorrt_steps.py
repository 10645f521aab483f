"""Which steps of the stand-in for TensorRT are to fail, what was called, and the logger that hears of it."""

from enum import IntEnum
from typing import Any

FAIL: set[str] = set()
CALLS: list[Any] = []
CAPTURING: set[int] = set()
"""Threads that are capturing."""


def reset() -> None:
    FAIL.clear()
    CALLS.clear()
    CAPTURING.clear()


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.constructed = True

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        """Pure virtual, as there: TensorRT calls what a subclass makes of it."""
        raise NotImplementedError("a logger has to say what becomes of a message")


def refuses(step: str, logger: ILogger) -> bool:
    """Whether a step is to fail; then the logger hears why."""
    CALLS.append(step)
    if step in FAIL:
        logger.log(ILogger.Severity.ERROR, f"[fake] no {step}")
    return step in FAIL
