"""The small server of server.py over gRPC, as the service is defined for Triton."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.export.triton.server import Change, Models, Refused

STATUS = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}
DTYPES = {"INT64": np.int64, "FP32": np.float32}


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers of the same models as JSON has them; `raw`: numbers as bytes, else in lists of their type."""

    def __init__(self, models: Models, change: Change, raw: bool) -> None:
        self.models, self.change, self.raw = models, change, raw

    def ServerReady(self, request: Any, context: Any) -> Any:
        told = self.told("ready", lambda: {"ready": True}, context)
        return pb.ServerReadyResponse(ready=told["ready"])

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        told = self.told("metadata", lambda: self.models.metadata(request.name, request.version), context)
        return pb.ModelMetadataResponse(
            name=told["name"], versions=told["versions"], inputs=told["inputs"], outputs=told["outputs"]
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:
        asked = [
            {"name": each.name, "datatype": each.datatype, "shape": list(each.shape),
             "data": np.frombuffer(content, np.int64)}
            for each, content in zip(request.inputs, request.raw_input_contents, strict=True)
        ]  # fmt: skip
        told = self.told(
            "infer",
            lambda: self.models.infer(request.model_name, request.model_version, {"inputs": asked}),
            context,
        )
        answer = pb.ModelInferResponse(
            model_name=request.model_name, model_version=told.get("model_version", "")
        )
        for each in told["outputs"]:
            output = answer.outputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
            if self.raw:
                dtype = DTYPES.get(each["datatype"], np.float32)
                answer.raw_output_contents.append(np.asarray(each["data"], dtype).tobytes())
            else:
                field = {"INT64": "int64_contents", "FP32": "fp32_contents"}[each["datatype"]]
                getattr(output.contents, field).extend(each["data"])
        return answer

    def told(self, what: str, answer: Any, context: Any) -> Any:
        try:
            return self.change(what, answer())
        except Refused as refused:
            context.abort(STATUS.get(refused.status, grpc.StatusCode.INTERNAL), refused.text)


@contextmanager
def grpc_serving(
    folder: Path, change: Change = lambda what, answer: answer, *, raw: bool = True
) -> Iterator[str]:
    """The address grpc://HOST:PORT of a server of the models of a repository, while the block runs."""
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        service = Service(Models(folder / "models"), change, raw)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
