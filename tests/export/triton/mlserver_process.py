"""MLServer, Seldon's server of the Open Inference Protocol, in a process of its own, as its command does it.

It cannot be imported in this one: its protobuf classes and those of tritonclient have the same names.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

RUNTIME = "tests.export.triton.mlserver_runtime.GraphModel"
READY = ("Application startup complete", "gRPC server running on", "Uvicorn running on")
PATIENCE = 120.0  # seconds


def add_model(folder: Path, model: Mapping[str, Any], version: int, graph: Path) -> Path:
    """Lay down a graph as a version of a model of a repository's manifest; its copy is returned."""
    place = folder / f"{model['name']}-{version}"
    place.mkdir(parents=True)
    shutil.copyfile(graph, place / "model.onnx")
    settings = {
        "name": model["name"], "implementation": RUNTIME, "platform": "onnx",
        "inputs": [_tensor(each) for each in model["inputs"]],
        "outputs": [_tensor(each) for each in model["outputs"]],
        "parameters": {"uri": "./model.onnx", "version": str(version)},
    }  # fmt: skip
    (place / "model-settings.json").write_text(json.dumps(settings))
    return place / "model.onnx"


def _tensor(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": told["name"], "datatype": told["type"], "shape": told["shape"]}


@contextmanager
def mlserver(folder: Path) -> Iterator[dict[str, str]]:
    """The addresses `http` and `grpc` of a server of all models in a folder, while the block runs."""
    http, grpc = _free_ports(2)
    settings = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc,
        "metrics_endpoint": None, "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    models = len(list(folder.glob("*/model-settings.json")))
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)],
        cwd=folder, env=os.environ | {"PYTHONPATH": root}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    try:
        _wait_for([*READY, *["Loaded model"] * models], process.stdout)
        yield {"http": f"http://127.0.0.1:{http}", "grpc": f"grpc://127.0.0.1:{grpc}"}
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(texts: Iterable[str], log: IO[str]) -> None:
    """Return once a log has told all these texts, each as often as listed; it is read until it ends."""
    left, lines, done = list(texts), list[str](), threading.Event()

    def read() -> None:
        with log:
            for line in log:
                lines.append(line)
                for text in {text for text in left if text in line}:
                    left.remove(text)
                if not left:
                    done.set()
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(PATIENCE) and not left, f"MLServer did not tell {left}:\n{''.join(lines)}"
