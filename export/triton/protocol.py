"""The Open Inference Protocol (KServe v2): what is asked of a live server, over HTTP or gRPC."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recommender.errors import GateError

TIMEOUT = 30.0
TYPES: dict[str, type] = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "FP64": np.float64}


class Server(Protocol):
    """A server by its address. Its methods raise GateError where it is down or refuses what is asked."""

    url: str

    def check_ready(self) -> None:
        """Raise GateError unless the server answers and says that it is ready."""

    def metadata(self, model: str, version: int) -> Mapping[str, Any]:
        """`versions`, `inputs` and `outputs` (`name`, `datatype`, `shape`) of a version of a model."""

    def infer(
        self, model: str, version: int, inputs: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, NDArray[Any]]:
        """The outputs of one request by name; a score that is none may be -inf or NaN."""


def no_answer(url: str, reason: object) -> GateError:
    """Nobody is there, or what is there speaks something else."""
    return GateError(
        f"no server answers: {reason}", where=url,
        fix="start it (README.md of the repository says how), or mend the address",
    )  # fmt: skip


def not_ready(url: str, reason: str) -> GateError:
    """The server is there, and still loads its models, or could not."""
    return GateError(f"is not ready{reason}", where=url, fix="its log says which model it could not load")


def refused(url: str, what: str, status: object, reason: str) -> GateError:
    """The server answers with an error, as for a model or a version that it does not have."""
    return GateError(
        f"{what} is refused (status {status}): {reason}", where=url,
        fix="start the server with the models of this repository",
    )  # fmt: skip


def unreadable(url: str, model: str, error: Exception) -> GateError:
    """The answer is no tensors of known types."""
    return GateError(f"{model!r} answers what cannot be read: {error!r}", where=url)


def check_version(url: str, model: str, version: int, answered: str | None) -> None:
    """Raise GateError where another version answered than was asked; None: the server does not say."""
    if answered and answered != str(version):
        raise GateError(
            f"{model!r} answered as version {answered}, not {version}", where=url,
            fix="load this repository's version, or verify the repository that the server has",
        )  # fmt: skip
