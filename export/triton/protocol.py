"""The Open Inference Protocol (KServe v2) over HTTP: is a server there, what does it serve and answer."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.errors import GateError, InputError

TIMEOUT = 30.0
TYPES: dict[str, type] = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "FP64": np.float64}


class Server:
    """A server by its address. Raises InputError for one that is not http(s)://HOST[:PORT]."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"{url!r} is no address of a server", where="--url",
                fix="give its HTTP port: http://localhost:8000",
            )  # fmt: skip
        self.url, self.timeout = url.rstrip("/"), timeout

    def check_ready(self) -> None:
        """Raise GateError unless the server answers and says that it is ready."""
        status, text = self._call("/v2/health/ready")
        if status != 200:
            raise GateError(
                f"is not ready (status {status}{f': {text}' if text else ''})", where=self.url,
                fix="its log says which model it could not load",
            )  # fmt: skip

    def metadata(self, model: str) -> Mapping[str, Any]:
        """What the server says of a model. Raises GateError where it does not serve it."""
        return self._json(f"/v2/models/{urllib.parse.quote(model)}", f"model {model!r}")

    def infer(
        self, model: str, version: int, inputs: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, NDArray[Any]]:
        """The outputs of one request by name. Raises GateError where there are none that can be read."""
        asked = [
            {
                "name": name,
                "datatype": "INT64",
                "shape": list(array.shape),
                "data": array.reshape(-1).tolist(),
            }
            for name, array in inputs.items()
        ]
        path = f"/v2/models/{urllib.parse.quote(model)}/versions/{version}/infer"
        told = self._json(path, f"a request to {model!r}", {"inputs": asked})
        answered = told.get("model_version")
        if answered is not None and str(answered) != str(version):
            raise GateError(
                f"{model!r} answered as version {answered}, not {version}", where=self.url,
                fix="load this repository's version, or verify the repository that the server has",
            )  # fmt: skip
        try:
            return {
                each["name"]: np.asarray(each["data"], TYPES[each["datatype"]]).reshape(each["shape"])
                for each in _entries(told, "outputs")
            }
        except (LookupError, TypeError, ValueError) as error:
            raise GateError(f"{model!r} answers what cannot be read: {error!r}", where=self.url) from error

    def _json(self, path: str, what: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        status, text = self._call(path, body)
        if status != 200:
            raise GateError(
                f"{what} is refused (status {status}): {_reason(text)}", where=self.url,
                fix="start the server with the models of this repository",
            )  # fmt: skip
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
        except (OSError, ValueError) as error:  # refused, no such host, too late, no HTTP
            raise GateError(
                f"no server answers: {getattr(error, 'reason', error)}", where=self.url,
                fix="start it (README.md of the repository says how), or mend the address",
            ) from error  # fmt: skip


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
