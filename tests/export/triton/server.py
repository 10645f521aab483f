"""A small server of the Open Inference Protocol (KServe v2) that loads a model repository.

It starts at once and can be wrong on demand; test_mlserver.py asks a kept server that cannot.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from export.half_check import rounded_in_float

TYPES = {"tensor(int64)": ("INT64", np.int64), "tensor(float)": ("FP32", np.float32)}
Change = Callable[[str, dict[str, Any]], Any]
"""Called with what is answered ("ready", "metadata", "infer") and the answer, which it may alter."""


class Refused(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text


class Models:
    """The models below a folder, each with its newest version."""

    def __init__(self, folder: Path) -> None:
        self.graphs: dict[str, tuple[str, onnxruntime.InferenceSession]] = {}
        for config in folder.glob("*/config.pbtxt"):
            version = max(int(p.name) for p in config.parent.iterdir() if p.name.isdecimal())
            graph = config.parent / str(version) / "model.onnx"
            self.graphs[config.parent.name] = (str(version), _opened(graph))

    def metadata(self, name: str, version: str | None) -> dict[str, Any]:
        version, session = self._graph(name, version)
        return {
            "name": name, "versions": [version], "platform": "onnxruntime_onnx",
            "inputs": [_tensor(value) for value in session.get_inputs()],
            "outputs": [_tensor(value) for value in session.get_outputs()],
        }  # fmt: skip

    def infer(self, name: str, version: str | None, asked: dict[str, Any]) -> dict[str, Any]:
        served, session = self._graph(name, version)
        known = {value.name: value for value in session.get_inputs()}
        if {each["name"] for each in asked["inputs"]} != set(known):
            raise Refused(400, f"expected inputs {sorted(known)}")
        given = {}
        for each in asked["inputs"]:
            datatype, dtype = TYPES[known[each["name"]].type]
            if each["datatype"] != datatype:
                raise Refused(400, f"{each['name']} must be {datatype}")
            given[each["name"]] = np.array(each["data"], dtype).reshape(each["shape"])
        names = [value.name for value in session.get_outputs()]
        outputs = [
            {
                "name": value.name, "datatype": TYPES[value.type][0],
                "shape": list(array.shape), "data": array.reshape(-1).tolist(),
            }
            for value, array in zip(session.get_outputs(), session.run(names, given), strict=True)
        ]  # fmt: skip
        return {"model_name": name, "model_version": served, "outputs": outputs}

    def _graph(self, name: str, version: str | None) -> tuple[str, onnxruntime.InferenceSession]:
        if name not in self.graphs:
            raise Refused(404, f"Request for unknown model: '{name}' is not found")
        served, session = self.graphs[name]
        if version not in (None, served):
            raise Refused(404, f"Request for unknown model: '{name}' version {version} is not found")
        return served, session


def _opened(path: Path) -> onnxruntime.InferenceSession:
    """A session; of a bf16 graph that of its float32 twin, as a CPU has no kernels for it."""
    model = ir.load(path)
    if any(value.dtype == ir.DataType.BFLOAT16 for value in model.graph.initializers.values()):
        twin = ir.to_proto(rounded_in_float(model, "bf16"))
        return onnxruntime.InferenceSession(twin.SerializeToString())
    return onnxruntime.InferenceSession(path)


def _tensor(value: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return {"name": value.name, "datatype": TYPES[value.type][0], "shape": shape}


@contextmanager
def serving(folder: Path, change: Change = lambda what, answer: answer) -> Iterator[str]:
    """The address of a server of the models of a repository, on a free port, while the block runs."""
    models = Models(folder / "models")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/([^/]+))?", self.path)
            if self.path == "/v2/health/ready":
                self.reply("ready", lambda: {})
            elif name:
                self.reply("metadata", lambda: models.metadata(name[1], name[2]))
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            place = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer", self.path)
            assert place
            self.reply("infer", lambda: models.infer(place[1], place[2], body))

        def reply(self, what: str, answer: Callable[[], dict[str, Any]]) -> None:
            try:
                status, told = 200, change(what, answer())
            except Refused as refused:
                status, told = refused.status, {"error": refused.text}
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
