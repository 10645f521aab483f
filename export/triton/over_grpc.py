"""The Open Inference Protocol over gRPC, which carries -inf: the service that Triton and others offer.

Needs `tritonclient[grpc]`, which is imported when a server is asked.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.triton.protocol import (
    TIMEOUT,
    TYPES,
    check_version,
    no_answer,
    not_ready,
    refused,
    unreadable,
)
from recommender.errors import require

CONTENTS = {
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a type's numbers lie in an answer that does not hold them as bytes."""

SILENT = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
"""Nobody is there, or what is there speaks no gRPC, or answers too late."""


class GrpcServer:
    """A server at grpc://HOST:PORT. Raises InputError where the client's package is not installed."""

    def __init__(self, url: str, address: str, timeout: float = TIMEOUT) -> None:
        for module in ("grpc", "tritonclient.grpc"):  # the second misses the first with a RuntimeError
            self._triton = require(module, extra="triton", for_="asking a server over gRPC")
        self.url, self.timeout, self._address = url, timeout, address

    def check_ready(self) -> None:
        """Raise GateError unless the server answers and says that it is ready."""
        if not self._call(lambda client: client.is_server_ready(client_timeout=self.timeout), "readiness"):
            raise not_ready(self.url, "")

    def metadata(self, model: str, version: int) -> Mapping[str, Any]:
        """What the server says of a version of a model. Raises GateError where it does not serve it."""
        told = self._call(
            lambda client: client.get_model_metadata(model, str(version), client_timeout=self.timeout),
            f"version {version} of model {model!r}",
        )
        return {"versions": list(told.versions), "inputs": _told(told.inputs), "outputs": _told(told.outputs)}

    def infer(
        self, model: str, version: int, inputs: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, NDArray[Any]]:
        """The outputs of one request by name. Raises GateError where there are none that can be read."""
        asked = []
        for name, array in inputs.items():
            given = self._triton.InferInput(name, list(array.shape), "INT64")
            given.set_data_from_numpy(array)
            asked.append(given)
        told = self._call(
            lambda client: client.infer(model, asked, str(version), client_timeout=self.timeout),
            f"a request to {model!r}",
        ).get_response()
        check_version(self.url, model, version, told.model_version)
        try:
            return {
                each.name: _array(each, told.raw_output_contents, at) for at, each in enumerate(told.outputs)
            }
        except (LookupError, ValueError) as error:
            raise unreadable(self.url, model, error) from error

    def _call(self, ask: Callable[[Any], Any], what: str) -> Any:
        """Ask over a connection of its own."""
        try:
            with self._triton.InferenceServerClient(self._address) as client:
                return ask(client)
        except self._triton.InferenceServerException as error:
            if error.status() in SILENT:
                raise no_answer(self.url, error.message()) from error
            raise refused(self.url, what, error.status(), str(error.message())[:500]) from error


def _told(tensors: Any) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in tensors]


def _array(output: Any, raw: Any, place: int) -> NDArray[Any]:
    """The numbers of an output: the bytes at its place, or its own list where no bytes were sent."""
    dtype = TYPES[output.datatype]
    if raw:
        return np.frombuffer(raw[place], dtype).reshape(list(output.shape))
    return np.asarray(getattr(output.contents, CONTENTS[output.datatype]), dtype).reshape(list(output.shape))
