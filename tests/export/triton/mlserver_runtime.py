"""A runtime of MLServer that answers with an ONNX graph; the server's own process imports it."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class GraphModel(MLModel):  # type: ignore[misc]
    """The graph at `parameters.uri`, on one thread of this CPU."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = await get_model_uri(self._settings)
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        names = [value.name for value in self._session.get_outputs()]
        arrays = self._session.run(names, given)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[
                NumpyCodec.encode_output(name, array) for name, array in zip(names, arrays, strict=True)
            ],
        )
