"""The Open Inference Protocol over HTTP, in JSON: is a server there, what does it serve and answer."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
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
from recommender.errors import GateError


class HttpServer:
    """A server at http(s)://HOST[:PORT]."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout

    def check_ready(self) -> None:
        """Raise GateError unless the server answers and says that it is ready."""
        status, text = self._call("/v2/health/ready")
        if status != 200:
            raise not_ready(self.url, f" (status {status}{f': {text}' if text else ''})")

    def metadata(self, model: str, version: int) -> Mapping[str, Any]:
        """What the server says of a version of a model. Raises GateError where it does not serve it."""
        return self._json(_path(model, version), f"version {version} of model {model!r}")

    def infer(
        self, model: str, version: int, inputs: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, NDArray[Any]]:
        """The outputs of one request by name. Raises GateError where there are none that can be read.

        JSON has no word for -inf: some servers write -Infinity, others null, which is NaN here.
        """
        asked = [
            {
                "name": name,
                "datatype": "INT64",
                "shape": list(array.shape),
                "data": array.reshape(-1).tolist(),
            }
            for name, array in inputs.items()
        ]
        told = self._json(f"{_path(model, version)}/infer", f"a request to {model!r}", {"inputs": asked})
        answered = told.get("model_version")
        check_version(self.url, model, version, None if answered is None else str(answered))
        try:
            return {
                each["name"]: np.asarray(each["data"], TYPES[each["datatype"]]).reshape(each["shape"])
                for each in _entries(told, "outputs")
            }
        except (LookupError, TypeError, ValueError) as error:
            raise unreadable(self.url, model, error) from error

    def _json(self, path: str, what: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        status, text = self._call(path, body)
        if status != 200:
            raise refused(self.url, what, status, _reason(text))
        try:
            told = json.loads(text)
        except ValueError as error:
            raise GateError(f"{what} is answered by what is no JSON", where=self.url) from error
        if not isinstance(told, dict):
            raise GateError(f"{what} is answered by what is no JSON object", where=self.url)
        return told

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=self.timeout) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")
        except http.client.HTTPException as error:  # a gRPC port, or an answer that broke off
            raise no_answer(
                self.url, f"what is there does not speak HTTP ({type(error).__name__})"
            ) from error
        except (OSError, ValueError) as error:  # refused, no such host, too late
            raise no_answer(self.url, getattr(error, "reason", error)) from error


def _path(model: str, version: int) -> str:
    return f"/v2/models/{urllib.parse.quote(model)}/versions/{version}"


def _entries(told: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    found = told.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{key!r} is missing")
    return found


def _reason(text: str) -> str:
    """The error that a server tells in JSON, else the beginning of its text."""
    try:
        told = json.loads(text)
    except ValueError:
        return text[:200]
    return str(told.get("error", told))[:500] if isinstance(told, dict) else text[:200]
