"""The same in MLServer, started by `mlserver start <folder>` with the settings that `serving.py` writes."""

import os

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(os.environ["MODEL_FILE"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = NumpyCodec.decode_input(payload.inputs[0])
        names = ("logits", "probabilities")
        answers = zip(names, self.session.run(names, {"x": inputs}), strict=True)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in answers]
        return InferenceResponse(model_name=self.name, outputs=outputs)
