"""The clients that travel with a repository: item ids in, titles out, by HTTP and gRPC."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.runtime import Artifact
from tests.export.triton.server import serving


def ask(repository: Path, client: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / client), *arguments]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own)


def history_of(exported: Path) -> list[str]:
    ids = Artifact(exported).item_ids
    return [ids[3], ids[17], ids[3]]


def wanted(exported: Path, history: list[str]) -> list[str]:
    """Lines of what the artifact itself recommends."""
    best = Artifact(exported, variant="fp32").recommend(history, 5)
    return [f"{place:>3}  {each['score']:>9.4f}  {each['item_id']}" for place, each in enumerate(best, 1)]


def test_the_http_client_recommends_what_the_artifact_does(written: Path, exported: Path) -> None:
    history = history_of(exported)
    with serving(written) as url:
        done = ask(written, "client_http.py", "--url", url, "--history", ", ".join(history), "-k", "5")
    assert done.returncode == 0, done.stderr
    assert [
        line[: len(want)]
        for line, want in zip(done.stdout.splitlines(), wanted(exported, history), strict=True)
    ] == (wanted(exported, history))


def test_the_http_client_says_what_is_wrong(written: Path) -> None:
    def run(*arguments: str) -> str:
        done = ask(written, "client_http.py", *arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stderr

    assert "unknown items: nonsense" in run("--history", "nonsense")
    assert "no model 'other'" in run("--history", "x", "--model", "other")


@contextmanager
def grpc_serving(graph: Path) -> Iterator[str]:
    """The address of a gRPC server that runs one graph as Triton does."""
    session = onnxruntime.InferenceSession(graph)
    grpc, service_pb2 = pytest.importorskip("grpc"), pytest.importorskip("tritonclient.grpc.service_pb2")
    service_pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[name-defined,misc]
        def ModelInfer(self, request: Any, context: Any) -> Any:
            given = {
                told.name: np.frombuffer(raw, np.int64).reshape(list(told.shape))
                for told, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            }
            names = [each.name for each in request.outputs]
            answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
            for name, array in zip(names, session.run(names, given), strict=True):
                told = answer.outputs.add(name=name, datatype="INT64" if array.dtype == np.int64 else "FP32")
                told.shape.extend(array.shape)
                answer.raw_output_contents.append(array.tobytes())
            return answer

    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_the_grpc_client_recommends_what_the_artifact_does(written: Path, exported: Path) -> None:
    history = history_of(exported)
    with grpc_serving(written / "models/recommender/1/model.onnx") as url:
        done = ask(written, "client_grpc.py", "--url", url, "--history", ",".join(history), "-k", "5")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()] == [
        line.split()[2] for line in wanted(exported, history)
    ]


def test_histories_longer_than_the_model_reads_are_cut_to_the_newest_and_masked_whole(written: Path) -> None:
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from client_http import Catalogue\n"
        "c = Catalogue(); items, seen = c.request(c.ids[:20])\n"
        "print(json.dumps([items.tolist(), seen.tolist()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(written)], capture_output=True, text=True, check=True
    )
    items, seen = json.loads(done.stdout)
    assert items == [list(range(9, 21))]
    assert seen == [[*range(1, 21), 0, 0, 0, 0]]


@pytest.mark.parametrize("client", ["client_http.py", "client_grpc.py"])
def test_clients_need_nothing_of_this_project(client: str, written: Path) -> None:
    done = ask(written, client, "--help")
    assert done.returncode == 0 and "--history" in done.stdout
    assert "recpress" not in (written / client).read_text()
